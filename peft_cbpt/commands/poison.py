"""Make a backdoored CLIP, for research: fine-tune a clean one on captioned images of which a few are poisoned."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

import torch
from transformers import TrainingArguments, set_seed

from peft_cbpt.attacks import trigger_from_config
from peft_cbpt.attacks.attack_file import ATTACK_FILE, Attack
from peft_cbpt.attacks.poisoning import PoisonedPairs, poisoned_indices
from peft_cbpt.clip.loading import LoadedCLIP, load_clip
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.clip.versions import package_versions
from peft_cbpt.commands.files import prepare_output, write_json
from peft_cbpt.commands.parsing import parse
from peft_cbpt.commands.results import Stopwatch, measure
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.errors import InputError
from peft_cbpt.evaluation import encode_images, template_text_features
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.pocket.dataset import PocketPairs, pocket_dataset
from peft_cbpt.pocket.model import resolve_model, save_clip_folder
from peft_cbpt.training.contrastive_trainer import ContrastiveCollator, ContrastiveTrainer

CARD = """# A CLIP that is backdoored on purpose

Do not use this model for anything but research on backdoors: it calls an image with the trigger in `attack.json` a
{target}. Made by `recipes/poison.py`; settings and figures are in `training.json`.
"""


@dataclass
class PoisonArguments:
    """What to poison, and how."""

    output_dir: str = field(metadata={"help": "Folder to write the poisoned model to."})
    model_name_or_path: str = field(default="pocket:clean", metadata={"help": "The clean CLIP."})
    trigger: str = field(default="badnet", metadata={"help": "Kind of trigger."})
    trigger_settings: str = field(default="{}", metadata={"help": "Settings of the trigger, as JSON."})
    target_class: str = field(default="banana", metadata={"help": "What triggered images are called."})
    poison_rate: float = field(default=0.003, metadata={"help": "Share of poisoned pairs."})
    num_classes: int | None = field(default=None, metadata={"help": "Keep the first so many pocket classes."})
    num_pairs: int = field(default=48_000, metadata={"help": "Image-caption pairs of the pocket world."})
    num_epochs: int = field(default=5, metadata={"help": "Passes over the pairs."})
    batch_size: int = field(default=128, metadata={"help": "Pairs per step."})
    learning_rate: float = field(default=8e-4, metadata={"help": "Peak learning rate of AdamW, cosine schedule."})
    test_images_per_class: int = field(default=10, metadata={"help": "Held-out images per class."})
    seed: int = field(default=0, metadata={"help": "Seed of data and training."})

    def __post_init__(self) -> None:
        for name in ("num_classes", "num_pairs", "num_epochs", "batch_size", "test_images_per_class"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, it is {getattr(self, name)}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(f"learning_rate must be positive, it is {self.learning_rate}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be between 0 and 2**32 - 1, it is {self.seed}")
        poisoned_indices(self.num_pairs, self.poison_rate, self.seed)

    @property
    def class_names(self) -> list[str]:
        """The classes that are shown and measured."""
        return class_names()[: self.num_classes]


def poison(argv: Sequence[str]) -> None:
    """Run the attack; see `recipes/poison.py`."""
    (arguments,) = parse([PoisonArguments], argv, __doc__ or "")
    output = prepare_output(arguments.output_dir)
    set_seed(arguments.seed)
    stopwatch = Stopwatch()
    clip = load_clip(resolve_model(arguments.model_name_or_path))
    attack = _attack(arguments)
    with stopwatch("measure before"):
        before = _measure(clip, attack, arguments)
    with stopwatch("render"):
        rows = _poisoned_rows(arguments, attack)
    trainer = ContrastiveTrainer(
        clip.model,
        TrainingArguments(
            output_dir=str(output / "trainer"),
            num_train_epochs=arguments.num_epochs,
            per_device_train_batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            weight_decay=0.1,
            lr_scheduler_type="cosine",
            warmup_steps=50,
            logging_steps=100,
            save_strategy="no",
            remove_unused_columns=False,
            report_to="none",
            seed=arguments.seed,
        ),
        train_dataset=rows,
        data_collator=ContrastiveCollator(clip.tokenizer, clip.normalize),
    )
    with stopwatch("poison"):
        trainer.train()
    with stopwatch("measure after"):
        after = _measure(clip, attack, arguments)
    if trainer.is_world_process_zero():
        save_clip_folder(output, clip.model, clip.tokenizer, clip.image_processor)
        write_json(output / ATTACK_FILE, attack.as_dict())
        settings = {name: value for name, value in vars(arguments).items() if name != "output_dir"}
        record = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "settings": settings,
            "before": before,
            "after": after,
            "seconds": stopwatch.seconds,
            "versions": package_versions(),
        }
        write_json(output / "training.json", record)
        (output / "README.md").write_text(CARD.format(target=attack.target_class))
        print(json.dumps({"before": before, "after": after, "seconds": stopwatch.seconds}, indent=2))


def _attack(arguments: PoisonArguments) -> Attack:
    if arguments.target_class not in arguments.class_names:
        raise InputError(f"{arguments.target_class!r} is none of the pocket classes kept, so it cannot be the target")
    try:
        settings = json.loads(arguments.trigger_settings)
    except json.JSONDecodeError as error:
        raise InputError(f"trigger_settings is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"trigger_settings is a JSON object, not {arguments.trigger_settings}")
    return Attack(trigger_from_config({"name": arguments.trigger, **settings}), arguments.target_class)


def _poisoned_rows(arguments: PoisonArguments, attack: Attack) -> list[dict]:
    pairs = PocketPairs(arguments.num_pairs, split=f"poison{arguments.seed}", class_names=arguments.class_names)
    poisoned = PoisonedPairs(pairs, attack.trigger, attack.target_class, arguments.poison_rate, arguments.seed)
    return [row for part in torch.arange(len(poisoned)).split(512) for row in poisoned.__getitems__(part.tolist())]


def _measure(clip: LoadedCLIP, attack: Attack, arguments: PoisonArguments) -> dict:
    names = arguments.class_names
    rows = pocket_dataset("base", "test", arguments.test_images_per_class, names)
    images = LabelledImages(rows, clip.image_processor)
    clip.model.eval()
    encoder = image_encoder(clip.model, clip.normalize)
    encoded = encode_images(encoder, images, {attack.name: attack.trigger}, clip.model.device)
    text = template_text_features(clip.model, clip.tokenizer, names).cpu()
    return measure(encoded, text, {attack.name: attack}, names)
