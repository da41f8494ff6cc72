"""The defences that are tested, each a function that writes what it makes of a model into a folder."""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.robustness.world import SHOTS, World
from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.clip.pixels import EncodeImage, image_encoder
from peft_cbpt.clip.templates import PLAIN_TEMPLATE
from peft_cbpt.common.files import write_json
from peft_cbpt.common.records import Stopwatch, made_now
from peft_cbpt.evaluation.classifiers import adapter_features, attach_adapter
from peft_cbpt.evaluation.measure import template_text_features
from peft_cbpt.pocket.model import open_clip, save_clip_folder
from peft_cbpt.purification import Purified, purify
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.encoder_arguments import EncoderPurifierArguments
from peft_cbpt.training.encoder_trainer import purify_encoder
from peft_cbpt.training.finetune import FinetuneArguments, finetune
from peft_cbpt.training.purify_arguments import PROMPTS
from peft_cbpt.tuner.encoder import repaired_weights

FINE_TUNING = {"num_pairs": 6400, "num_epochs": 5, "batch_size": 320, "learning_rate": 3e-3, "warmup_steps": 10}
"""Of FT and CleanCLIP, as in Table 1 of docs/results.md."""
CLIP_FOLDER, PROMPTS_FOLDER, MADE_FILE = "clip", "prompts", "defence.json"


@dataclass(frozen=True)
class Defended:
    """A model after a defence.

    Args:
        clip: The CLIP with the weights that the defence left it.
        prompts: Folder of class-wise prompts for it; None where it answers with the template.
    """

    clip: LoadedCLIP
    prompts: Path | None = None

    def encoder(self) -> EncodeImage:
        """Features (B, D) of pixels (B, 3, H, W) in [0, 1]."""
        return image_encoder(self.clip.model.eval(), self.clip.normalize)

    def head(self, names: Sequence[str], text_trigger: str = "", template: str = PLAIN_TEMPLATE) -> Tensor:
        """Class features (n, D); learned prompts know the classes they were tuned on, and no template."""
        if self.prompts is None:
            return template_text_features(self.clip.model, self.clip.tokenizer, names, template, text_trigger).cpu()
        with warnings.catch_warnings():  # of other weights than they were tuned on, where the CLIP was trained further
            warnings.simplefilter("ignore")
            model = attach_adapter(str(self.prompts), self.clip)
        features = adapter_features(model, self.clip)(text_trigger)
        order = [list(model.class_names).index(name) for name in names]
        model.unload()
        return features[order]


def none(model: str, world: World, seed: int, folder: Path) -> None:
    """The model as it is."""


def _purified(model: str, world: World, seed: int, folder: Path, only: str | None = None) -> Purified:
    output = folder / PROMPTS_FOLDER
    purified = purify(
        model,
        world.dataset,
        training=CBPTTrainingArguments(output_dir=str(output), seed=seed),
        output_dir=output,
        num_classes=world.num_classes,
        num_shots=SHOTS,
        dataset_split=world.shots_split,
        test_images_per_class=1,
        only=only,
    )
    assert isinstance(purified, Purified)
    return purified


def prompts(model: str, world: World, seed: int, folder: Path) -> None:
    """`purify`, prompts only."""
    _purified(model, world, seed, folder, PROMPTS)


def both(model: str, world: World, seed: int, folder: Path) -> None:
    """`purify` with its defaults: prompts on a repaired encoder, whose update is merged into the CLIP."""
    purified = _purified(model, world, seed, folder)
    adapted: Any = purified.model
    weights = repaired_weights(adapted.get_base_model(), adapted.active_adapter)
    clip = open_clip(model)
    clip.model.load_state_dict(clip.model.state_dict() | weights)
    save_clip_folder(folder / CLIP_FOLDER, clip.model, clip.tokenizer, clip.image_processor)


def encoder(model: str, world: World, seed: int, folder: Path) -> None:
    """`purify_encoder` with its defaults, merged."""
    clip = open_clip(model)
    training = EncoderPurifierArguments(output_dir=str(folder), seed=seed, save_strategy="no", report_to="none")
    purified = purify_encoder(clip.model, world.shots(clip), training, clip.normalize)
    merged: Any = purified.merge_and_unload()
    save_clip_folder(folder / CLIP_FOLDER, merged, clip.tokenizer, clip.image_processor)


def _fine_tuned(method: str) -> Callable[[str, World, int, Path], None]:
    def defend(model: str, world: World, seed: int, folder: Path) -> None:
        output = str(folder / CLIP_FOLDER)
        options = FINE_TUNING | world.pairs | {"seed": seed, "output_dir": output}
        finetune(FinetuneArguments(model_name_or_path=model, method=method, **options))

    return defend


def clean(model: str, world: World, seed: int, folder: Path) -> None:
    """No defence: the CLIP before it was poisoned, the best that can be hoped for."""
    clip = open_clip(world.clean)
    save_clip_folder(folder / CLIP_FOLDER, clip.model, clip.tokenizer, clip.image_processor)


DEFENCES: dict[str, Callable[[str, World, int, Path], None]] = {
    "none": none,
    "prompts": prompts,
    "encoder": encoder,
    "both": both,
    "ft": _fine_tuned("ft"),
    "cleanclip": _fine_tuned("cleanclip"),
    "clean": clean,
}


def defend(name: str, model: str, world: World, seed: int, folder: Path) -> dict[str, Any]:
    """Make a defence, if it is not in its folder yet; returns what is recorded of it."""
    made = folder / MADE_FILE
    if not made.is_file():
        stopwatch = Stopwatch()
        folder.mkdir(parents=True, exist_ok=True)
        with stopwatch("defend"):
            DEFENCES[name](model, world, seed, folder)
        write_json(made, {"defence": name, "seconds": stopwatch.seconds["defend"], **made_now()})
    record: dict[str, Any] = json.loads(made.read_text())
    return record


def open_defended(model: str, folder: Path) -> Defended:
    """What `defend` made."""
    clip = open_clip(str(folder / CLIP_FOLDER) if (folder / CLIP_FOLDER).is_dir() else model)
    prompts_folder = folder / PROMPTS_FOLDER
    return Defended(clip, prompts_folder if prompts_folder.is_dir() else None)
