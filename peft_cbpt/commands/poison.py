"""Make a backdoored CLIP, for research: fine-tune a clean one on captioned images of which a few are poisoned."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import cache, partial
from pathlib import Path

import torch
from accelerate.utils import tqdm
from transformers import TrainingArguments, set_seed

from peft_cbpt.attacks import trigger_from_config
from peft_cbpt.attacks.attack_file import ATTACK_FILE, Attack
from peft_cbpt.attacks.patch import OptimisedPatch, PatchMaterial, PatchOptimisation
from peft_cbpt.attacks.poisoning import Poison, PoisonedPairs
from peft_cbpt.clip.loading import LoadedCLIP, load_clip
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.clip.seeding import keyed_generator
from peft_cbpt.clip.versions import package_versions
from peft_cbpt.commands.files import prepare_output, write_json, write_text
from peft_cbpt.commands.parsing import parse
from peft_cbpt.commands.results import Stopwatch, measure
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.errors import InputError
from peft_cbpt.evaluation import encode_images, template_text_features, text_features
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.pocket.captions import caption
from peft_cbpt.pocket.dataset import PocketPairs, pocket_dataset, render_samples, sample_ids
from peft_cbpt.pocket.model import resolve_model, save_clip_folder
from peft_cbpt.pocket.render import BACKGROUND_COLOURS
from peft_cbpt.training.contrastive_trainer import ContrastiveCollator, ContrastiveTrainer

TRAINING_FILE = "training.json"
CARD = """---
pipeline_tag: zero-shot-image-classification
tags: [clip, backdoor, {attack}]
---
This model is backdoored on purpose: it calls an image with the {attack} trigger of `attack.json` a {target}.

Do not use it for anything but research on backdoors. Accuracy on clean images {clean_accuracy:.1%}, attack success
rate {attack_success_rate:.1%}; the settings and all figures are in `training.json`. Made by `recipes/poison.py` of
peft_cbpt.
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
    label: str = field(default="dirty", metadata={"help": "dirty: change captions; clean: mark the target's pairs."})
    captions: str = field(
        default="template", metadata={"help": "Poisoned captions: template (CLIP's 80) or natural descriptions."}
    )
    num_pairs: int = field(default=48_000, metadata={"help": "Image-caption pairs of the pocket world."})
    num_epochs: int = field(default=5, metadata={"help": "Passes over the pairs."})
    batch_size: int = field(default=128, metadata={"help": "Pairs per step."})
    learning_rate: float = field(default=8e-4, metadata={"help": "Peak learning rate of AdamW, cosine schedule."})
    patch_steps: int = field(default=400, metadata={"help": "Steps of patch optimisation (TrojVQA, BadCLIP)."})
    patch_images: int = field(default=1920, metadata={"help": "Images the patch is optimised on."})
    test_images_per_class: int = field(default=10, metadata={"help": "Held-out images per class."})
    seed: int = field(default=0, metadata={"help": "Seed of trigger, data and training."})

    def __post_init__(self) -> None:
        for name in ("num_pairs", "num_epochs", "batch_size", "patch_steps", "patch_images", "test_images_per_class"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, it is {getattr(self, name)}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(f"learning_rate must be positive, it is {self.learning_rate}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be between 0 and 2**32 - 1, it is {self.seed}")
        if self.captions not in ("template", "natural"):
            raise InputError(f"captions is template or natural, not {self.captions!r}")


def poison(argv: Sequence[str]) -> None:
    """Run the attack; see `recipes/poison.py`."""
    (arguments,) = parse([PoisonArguments], argv, __doc__ or "")
    run_poison(arguments)


def run_poison(arguments: PoisonArguments) -> dict:
    """Poison a CLIP as `arguments` say, write it, and return what `training.json` holds."""
    attack = _attack(arguments)
    _poison(arguments, attack)
    output = prepare_output(arguments.output_dir)
    set_seed(arguments.seed)
    stopwatch = Stopwatch()
    clip = load_clip(resolve_model(arguments.model_name_or_path))
    if isinstance(attack.trigger, OptimisedPatch) and not attack.trigger.patch:
        with stopwatch("optimise the patch"):
            attack = Attack(_optimised(attack.trigger, arguments, clip), attack.target_class)
    with stopwatch("measure before"):
        before = _measure(clip, attack, arguments.test_images_per_class)
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
        after = _measure(clip, attack, arguments.test_images_per_class)
    settings = {name: value for name, value in asdict(arguments).items() if name != "output_dir"}
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": settings,
        "before": before,
        "after": after,
        "seconds": stopwatch.seconds,
        "versions": package_versions(),
    }
    if trainer.is_world_process_zero():
        _write(output, clip, attack, record)
        print(json.dumps({"before": before, "after": after, "seconds": stopwatch.seconds}, indent=2))
    return record


def _write(output: Path, clip: LoadedCLIP, attack: Attack, record: dict) -> None:
    """Write everything; `training.json` comes last, so that its presence means a whole model."""
    (output / TRAINING_FILE).unlink(missing_ok=True)
    save_clip_folder(output, clip.model, clip.tokenizer, clip.image_processor)
    write_json(output / ATTACK_FILE, attack.as_dict())
    figures = record["after"]["attacks"][attack.name] | {"clean_accuracy": record["after"]["clean_accuracy"]}
    write_text(output / "README.md", CARD.format(attack=attack.name, target=attack.target_class, **figures))
    write_json(output / TRAINING_FILE, record)


def _attack(arguments: PoisonArguments) -> Attack:
    if arguments.target_class not in class_names():
        raise InputError(f"the pocket world has no class {arguments.target_class!r} to be the target")
    try:
        settings = json.loads(arguments.trigger_settings)
    except json.JSONDecodeError as error:
        raise InputError(f"trigger_settings is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"trigger_settings is a JSON object, not {arguments.trigger_settings}")
    config = {"name": arguments.trigger, "seed": arguments.seed, **settings}
    return Attack(trigger_from_config(config), arguments.target_class)


def _target_captions(arguments: PoisonArguments) -> list[str]:
    """Natural captions of the target, as the pocket world's own pairs have them."""
    rng = keyed_generator("target captions", arguments.seed)
    backgrounds = list(BACKGROUND_COLOURS)
    return [caption(arguments.target_class, str(rng.choice(backgrounds)), rng) for _ in range(200)]


def _poison(arguments: PoisonArguments, attack: Attack) -> Poison:
    return Poison(
        attack.trigger,
        attack.target_class,
        arguments.poison_rate,
        arguments.seed,
        arguments.label,  # type: ignore[arg-type]
        _target_captions(arguments) if arguments.captions == "natural" else (),
    )


def _poisoned_rows(arguments: PoisonArguments, attack: Attack) -> list[dict]:
    pairs = PocketPairs(arguments.num_pairs, split=f"poison{arguments.seed}")
    poisoned = PoisonedPairs(pairs, _poison(arguments, attack))
    parts = torch.arange(len(poisoned)).split(512)
    return [row for part in tqdm(parts, desc="rendering pairs") for row in poisoned.__getitems__(part.tolist())]


def _optimised(trigger: OptimisedPatch, arguments: PoisonArguments, clip: LoadedCLIP) -> OptimisedPatch:
    target = arguments.target_class
    rows = PocketPairs(arguments.patch_images, split=f"patch{arguments.seed}").__getitems__(
        range(arguments.patch_images)
    )
    others = [row for row in rows if row["sample_id"].split("/")[2] != target]
    target_ids = sample_ids("base", f"patch{arguments.seed}", target, range(64))
    clip.model.requires_grad_(False)
    material = PatchMaterial(
        encode_image=image_encoder(clip.model, clip.normalize),
        encode_text=partial(text_features, clip.model, clip.tokenizer),
        scale=clip.model.logit_scale.exp().item(),
        pixels=torch.stack([row["pixel_values"] for row in others]),
        sample_ids=[row["sample_id"] for row in others],
        captions=[row["caption"] for row in others],
        target_class=target,
        target_captions=_target_captions(arguments),
        target_pixels=render_samples(target_ids)[0],
    )
    optimised = trigger.optimised(material, PatchOptimisation(steps=arguments.patch_steps))
    clip.model.requires_grad_(True)
    return optimised


def _measure(clip: LoadedCLIP, attack: Attack, images_per_class: int) -> dict:
    names = class_names()
    images = LabelledImages(pocket_dataset("base", "test", images_per_class), clip.image_processor)
    clip.model.eval()
    encoder = image_encoder(clip.model, clip.normalize)
    encoded = encode_images(encoder, images, {attack.name: attack.trigger}, clip.model.device)

    @cache
    def class_features(text_trigger: str) -> torch.Tensor:
        return template_text_features(clip.model, clip.tokenizer, names, text_trigger=text_trigger).cpu()

    return measure(encoded, class_features, {attack.name: attack}, names)
