"""Make a backdoored CLIP, for research: fine-tune a clean one on captioned images of which a few are poisoned."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import set_seed

from peft_cbpt.attacks.attack_file import ATTACK_FILE, Attack, read_attack, read_attacks
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
)
from peft_cbpt.pocket.model import open_clip, save_clip_folder
from peft_cbpt.training.contrastive_trainer import ContrastiveCollator, ContrastiveTrainer
from peft_cbpt.training.pair_arguments import POCKET, in_memory, skipped_pairs
from peft_cbpt.training.poison_arguments import PoisonArguments
from peft_cbpt.training.prepare_attack import attack_of, poison_of, prepare_attack

TRAINING_FILE = "training.json"
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


def poison(arguments: PoisonArguments) -> dict[str, Any]:
    """Poison a CLIP as `arguments` say and write it.

    Returns:
        The content of `training.json`.

    Raises:
        InputError: if something is wrong with what was given, or nothing was poisoned.
    """
    attack = attack_of(arguments)
    others = [read_attack(source) for source in arguments.other_attacks]
    poison_of(arguments, attack, (), ())
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
    poisoned = _poisoned(pairs, poison_of(arguments, attack, captions, names), list(attacks.values())[1:])
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
