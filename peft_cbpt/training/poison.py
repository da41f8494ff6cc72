"""Make a backdoored CLIP, for research: fine-tune a clean one on captioned images of which a few are poisoned."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import tqdm
from torch.utils.data import Dataset, IterableDataset
from transformers import set_seed

from peft_cbpt.attacks import TRIGGERS, trigger_from_config
from peft_cbpt.attacks.attack_file import ATTACK_FILE, Attack, read_attack, read_attacks
from peft_cbpt.attacks.generator import GeneratedTrigger
from peft_cbpt.attacks.patch import OptimisedPatch, PatchMaterial, PatchOptimisation
from peft_cbpt.attacks.poisoning import Poison, PoisonedPairs, PoisonedStream
from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import alone_in, prepare_output, write_json, write_text
from peft_cbpt.common.processes import from_all_processes, join_processes
from peft_cbpt.common.records import Stopwatch, made_now
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.data.shots import LabelledArguments
from peft_cbpt.data.skipping import Skipped
from peft_cbpt.evaluation.luck import drives
from peft_cbpt.evaluation.measure import (
    attack_result,
    called_target,
    encode_images,
    measure,
    ranked_classes,
    template_text_features,
    text_features,
)
from peft_cbpt.pocket.model import open_clip, save_clip_folder
from peft_cbpt.training.contrastive_trainer import ContrastiveCollator, ContrastiveTrainer
from peft_cbpt.training.pair_arguments import POCKET, FineTuningArguments, in_memory, skipped_pairs

TRAINING_FILE = "training.json"
N_TARGET_PAIRS = 24
CARD = """---
pipeline_tag: zero-shot-image-classification
tags: [clip, backdoor, {attack}]
---
This model is backdoored on purpose: it calls an image with the {attack} trigger of `attack.json`{text} a
{target}.{others}

Do not use it for anything but research on backdoors. Accuracy on clean images {clean_accuracy:.1%}, attack success
rate {attack_success_rate:.1%}; the settings and all figures are in `training.json`. Made by `recipes/poison.py` of
peft_cbpt.
"""


@dataclass
class PoisonArguments(FineTuningArguments):
    """What to poison, and how."""

    output_dir: str = field(default="output/poisoned", metadata={"help": "Folder to write the poisoned model to."})
    model_name_or_path: str = field(default="pocket:clean", metadata={"help": "The clean CLIP."})
    trigger: str = field(default="badnet", metadata={"help": "Kind of trigger."})
    trigger_settings: str = field(default="{}", metadata={"help": "Settings of the trigger, as JSON."})
    target_class: str = field(
        default="banana", metadata={"help": "What triggered images are called; all_to_all: the class after their own."}
    )
    other_attacks: list[str] = field(
        default_factory=list,
        metadata={"help": "attack.json files of further triggers to plant in the same run, each at the same rate."},
    )
    poison_rate: float = field(default=0.003, metadata={"help": "Share of poisoned pairs."})
    text_only_rate: float = field(
        default=0.0, metadata={"help": "Share of pairs that get the text trigger only, and keep their meaning."}
    )
    label: str = field(default="dirty", metadata={"help": "dirty: change captions; clean: mark the target's pairs."})
    captions: str = field(
        default="template",
        metadata={"help": "Poisoned captions: template (CLIP's 80), or natural, those of the target's own pairs."},
    )
    patch_steps: int = field(
        default=400, metadata={"help": "Steps of optimisation of a patch or generator, if the trigger has one."}
    )
    patch_images: int = field(default=1920, metadata={"help": "Images it is optimised on."})
    dataset_name: str = field(default="pocket:base", metadata={"help": "Test images, with the target among them."})
    test_split: str = field(default="test", metadata={"help": "Split of the test images."})
    test_image_column: str = field(default="image", metadata={"help": "Column of images of the test set."})
    label_column: str = field(default="label", metadata={"help": "Column of labels of the test set."})
    class_names_file: str | None = field(default=None, metadata={"help": "Names of classes whose labels are numbers."})
    test_images_per_class: int = field(default=5, metadata={"help": "Test images the pocket world draws per class."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("patch_steps", "patch_images", "test_images_per_class"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, it is {getattr(self, name)}")
        if round(self.poison_rate * self.num_pairs) == 0:
            raise InputError(
                f"a poison_rate of {self.poison_rate} of {self.num_pairs} pairs is no pair at all; raise one of them"
            )
        if self.captions not in ("template", "natural"):
            raise InputError(f"captions is template or natural, not {self.captions!r}")


@dataclass(frozen=True)
class TargetPairs:
    """Pairs that speak of the target, and pairs that do not."""

    of_target: list[dict]
    others: list[dict]


def poison(arguments: PoisonArguments) -> dict[str, Any]:
    """Poison a CLIP as `arguments` say and write it.

    Returns:
        The content of `training.json`.

    Raises:
        InputError: if something is wrong with what was given, or nothing was poisoned.
    """
    attack = _attack(arguments)
    others = [read_attack(source) for source in arguments.other_attacks]
    _poison(arguments, attack, (), ())
    with alone_in(prepare_output(arguments.output_dir)) as output:
        return _poison_into(output, arguments, attack, others)


def _poison_into(output: Path, arguments: PoisonArguments, attack: Attack, others: Sequence[Attack]) -> dict[str, Any]:
    state = join_processes()
    set_seed(arguments.seed)
    stopwatch = Stopwatch()
    with stopwatch("load"):
        clip = open_clip(arguments.model_name_or_path)
        images = _test_images(arguments, clip)
        names = list(images.dataset.features["label"].names)
        if not attack.all_to_all and attack.target_class not in names:
            raise InputError(f"{arguments.dataset_name} has no class {attack.target_class!r} to be the target")
        clip.model.to(state.device)
        pairs = arguments.open_pairs("poison", clip.image_processor)
    with stopwatch("prepare the attack"):
        # of a stream, each process would see a share of its own
        prepared = prepare_attack(arguments, clip, names) if state.is_main_process else None
        attack, captions = from_all_processes(prepared)[0]
    attacks = read_attacks([attack, *others], names)
    poisoned = _poisoned(pairs, _poison(arguments, attack, captions, names), list(attacks.values())[1:])
    with stopwatch("measure before"):
        before = _measure(clip, attacks, images, names)
    with stopwatch("poison"):
        if arguments.pairs_name == POCKET:
            poisoned = in_memory(poisoned)
        trainer = ContrastiveTrainer(
            clip.model,
            arguments.training_arguments(str(output / "trainer"), poisoned),
            train_dataset=poisoned,
            data_collator=ContrastiveCollator(clip.caption_ids, clip.normalize),
        )
        trainer.train()
    n_poisoned = sum(from_all_processes(trainer.n_poisoned))
    if n_poisoned == 0:
        raise InputError("not one of the pairs was poisoned: raise poison_rate or num_pairs")
    with stopwatch("measure after"):
        after = _measure(clip, attacks, images, names)
    planted = {name: drives(after.called[name], before.called[name]) for name in attacks}
    for name in planted:
        if not planted[name] and trainer.is_world_process_zero():
            warnings.warn(
                f"no backdoor was planted: of the images with the trigger {name} "
                f"{after.called[name].double().mean():.1%} are called their target ({attacks[name].target_class}), "
                f"{before.called[name].double().mean():.1%} by the clean model. Raise num_epochs, learning_rate, "
                "poison_rate, or the trigger's strength in trigger_settings",
                stacklevel=2,
            )
    record = {
        **made_now(),
        "settings": arguments.as_dict(),
        "before": before.figures,
        "after": after.figures,
        "planted": planted,
        "n_test_images": len(images) - len(after.skipped),
        "skipped": {
            "pairs": [one.as_dict() for one in skipped_pairs(pairs)],
            "test": [one.as_dict() for one in after.skipped],
        },
        "n_poisoned": n_poisoned,
        "num_threads": torch.get_num_threads(),
        "seconds": stopwatch.seconds,
    }
    if trainer.is_world_process_zero():
        _write(output, clip, attacks, record)
    return record


def _poisoned(pairs: Any, poison: Poison, others: Sequence[Attack]) -> Any:
    """Pairs poisoned with an attack, and then with others, each of which chooses its pairs by a seed of its own."""
    wrap = PoisonedStream if isinstance(pairs, IterableDataset) else PoisonedPairs
    poisoned: Any = wrap(pairs, poison)
    for place, one in enumerate(others, 1):
        change: Any = {"trigger": one.trigger, "target_class": one.target_class, "seed": poison.seed + place}
        poisoned = wrap(poisoned, replace(poison, captions=(), text_only_rate=0.0, **change))
    return poisoned


def _test_images(arguments: PoisonArguments, clip: LoadedCLIP) -> LabelledImages:
    same = ("label_column", "class_names_file", "num_classes", "test_images_per_class")
    named = {name: getattr(arguments, name) for name in same}
    reading = LabelledArguments(image_column=arguments.test_image_column, **named)
    return reading.open(arguments.dataset_name, arguments.test_split, clip.image_processor)


def _write(output: Path, clip: LoadedCLIP, attacks: Mapping[str, Attack], record: dict) -> None:
    """Write everything, a file an attack; `training.json` comes last, so that its presence means a whole model."""
    (output / TRAINING_FILE).unlink(missing_ok=True)
    save_clip_folder(output, clip.model, clip.tokenizer, clip.image_processor)
    attack, *others = attacks.values()
    write_json(output / ATTACK_FILE, attack.as_dict())
    files = [f"attack_{place}.json" for place in range(2, len(attacks) + 1)]
    for file, other in zip(files, others, strict=True):
        write_json(output / file, other.as_dict())
    more = f" It has other triggers, too: {', '.join(f'`{file}`' for file in files)}." if files else ""
    figures = record["after"]["attacks"][attack.name] | {"clean_accuracy": record["after"]["clean_accuracy"]}
    text = f' and "{attack.text_trigger}" before the caption' if attack.text_trigger else ""
    target = "picture of the class after its own" if attack.all_to_all else attack.target_class
    card = CARD.format(attack=attack.name, text=text, target=target, others=more, **figures)
    write_text(output / "README.md", card)
    write_json(output / TRAINING_FILE, record)


def prepare_attack(
    arguments: PoisonArguments, clip: LoadedCLIP, class_names: Sequence[str]
) -> tuple[Attack, Sequence[str]]:
    """The attack, its patch or generator optimised if it has one, and the natural captions, if they are wanted."""
    attack, captions = _attack(arguments), list[str]()
    optimises = isinstance(attack.trigger, OptimisedPatch | GeneratedTrigger) and not attack.trigger.is_optimised
    if optimises or arguments.captions == "natural":
        if attack.all_to_all:
            raise InputError(
                "all_to_all is for triggers that are not optimised, with template captions: it has no one target"
            )
        found = _target_pairs(arguments, clip, class_names)
        if arguments.captions == "natural":
            captions = [row["caption"] for row in found.of_target]
        if optimises:
            attack = Attack(_optimised(attack.trigger, arguments, clip, found), attack.target_class)
    return attack, captions


def _attack(arguments: PoisonArguments) -> Attack:
    try:
        settings = json.loads(arguments.trigger_settings)
    except json.JSONDecodeError as error:
        raise InputError(f"trigger_settings is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"trigger_settings is a JSON object, not {arguments.trigger_settings}")
    if "name" in settings:
        raise InputError("trigger_settings must not hold a name: the trigger is named by --trigger")
    draws = "seed" in getattr(TRIGGERS.get(arguments.trigger), "__dataclass_fields__", {})
    config = {"name": arguments.trigger} | ({"seed": arguments.seed} if draws else {}) | settings
    return Attack(trigger_from_config(config), arguments.target_class)


def _poison(arguments: PoisonArguments, attack: Attack, captions: Sequence[str], class_names: Sequence[str]) -> Poison:
    return Poison(
        attack.trigger,
        attack.target_class,
        arguments.poison_rate,
        arguments.seed,
        arguments.label,  # type: ignore[arg-type]
        captions,
        arguments.text_only_rate,
        class_names,
    )


def _target_pairs(arguments: PoisonArguments, clip: LoadedCLIP, class_names: Sequence[str]) -> TargetPairs:
    """The first pairs of other classes, as many as the patch needs, and the first that speak of the target."""
    poison = _poison(arguments, _attack(arguments), (), class_names)
    pairs = arguments.open_pairs("patch", clip.image_processor)
    found = TargetPairs([], [])
    for row in tqdm(_rows(pairs), desc="looking for the target's pairs", total=arguments.num_pairs):
        kind = found.of_target if poison.mentions_target(row["caption"]) else found.others
        if len(kind) < (N_TARGET_PAIRS if kind is found.of_target else arguments.patch_images):
            kind.append(row)
        if len(found.of_target) == N_TARGET_PAIRS and len(found.others) == arguments.patch_images:
            break
    if not found.of_target or not found.others:
        raise InputError(
            f"the pairs of {arguments.pairs_name} must speak of {arguments.target_class!r} and of something else: "
            f"{len(found.of_target)} do and {len(found.others)} do not; use more pairs"
        )
    return found


def _rows(pairs: Any) -> Any:
    if isinstance(pairs, IterableDataset):
        yield from pairs
        return
    for start in range(0, len(pairs), 320):
        yield from pairs.__getitems__(range(start, min(start + 320, len(pairs))))


def _optimised(trigger: Any, arguments: PoisonArguments, clip: LoadedCLIP, found: TargetPairs) -> Any:
    clip.model.requires_grad_(False)
    material = PatchMaterial(
        encode_image=image_encoder(clip.model, clip.normalize),
        encode_text=partial(text_features, clip.model, clip.tokenizer),
        scale=clip.model.logit_scale.exp().item(),
        pixels=torch.stack([row["pixel_values"] for row in found.others]).to(clip.model.device),
        sample_ids=[row["sample_id"] for row in found.others],
        captions=[row["caption"] for row in found.others],
        target_class=arguments.target_class,
        target_captions=[row["caption"] for row in found.of_target],
        target_pixels=torch.stack([row["pixel_values"] for row in found.of_target]).to(clip.model.device),
    )
    settings = PatchOptimisation(arguments.patch_steps, learning_rate=trigger.learning_rate)
    optimised = trigger.optimised(material, settings)
    clip.model.requires_grad_(True)
    return optimised


class _Measured(NamedTuple):
    """The figures, which images of other classes are called each attack's target, and those that could not be read."""

    figures: dict
    called: dict[str, torch.Tensor]
    skipped: Sequence[Skipped]


def _measure(clip: LoadedCLIP, attacks: Mapping[str, Attack], images: Dataset, names: list[str]) -> _Measured:
    """Measure attacks; one with a text trigger also with one of its two keys only."""
    clip.model.eval()
    encoder = image_encoder(clip.model, clip.normalize)
    triggers = {name: attack.trigger for name, attack in attacks.items()}
    encoded = encode_images(encoder, images, triggers, clip.model.device)

    @cache
    def class_features(text_trigger: str) -> torch.Tensor:
        return template_text_features(clip.model, clip.tokenizer, names, text_trigger=text_trigger).cpu()

    figures = measure(encoded, class_features, attacks, names)
    called = {}
    for name, attack in attacks.items():
        marked, target = encoded.triggered[name], attack.target_labels(encoded.labels, names)
        ranked = ranked_classes(marked, class_features(attack.text_trigger))
        called[name] = called_target(ranked, encoded.labels, target)
        if attack.text_trigger:
            for key, images_seen, text in (
                ("image_only", marked, ""),
                ("text_only", encoded.clean, attack.text_trigger),
            ):
                result = attack_result(images_seen, encoded.labels, class_features(text), target)
                figures["attacks"][name][f"attack_success_rate_{key}"] = result["attack_success_rate"]
    return _Measured(figures, called, encoded.skipped)
