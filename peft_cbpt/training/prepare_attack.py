"""From the settings of `poison` to an attack, with its patch or generator optimised if it has one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.utils import tqdm
from torch.utils.data import IterableDataset

from peft_cbpt.attacks import TRIGGERS, trigger_from_config
from peft_cbpt.attacks.attack_file import Attack
from peft_cbpt.attacks.generator import GeneratedTrigger
from peft_cbpt.attacks.patch import OptimisedPatch, PatchMaterial, PatchOptimisation
from peft_cbpt.attacks.poisoning import Poison
from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.common.errors import InputError
from peft_cbpt.evaluation.measure import text_features
from peft_cbpt.training.poison_arguments import PoisonArguments

N_TARGET_PAIRS = 24


@dataclass(frozen=True)
class TargetPairs:
    """Pairs that speak of the target, and pairs that do not."""

    of_target: list[dict]
    others: list[dict]


def prepare_attack(
    arguments: PoisonArguments, clip: LoadedCLIP, class_names: Sequence[str]
) -> tuple[Attack, Sequence[str]]:
    """The attack, its patch or generator optimised if it has one, and the natural captions, if they are wanted."""
    attack, captions = attack_of(arguments), list[str]()
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


def attack_of(arguments: PoisonArguments) -> Attack:
    """The attack that the settings name; its patch or generator is not optimised yet."""
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


def poison_of(
    arguments: PoisonArguments, attack: Attack, captions: Sequence[str], class_names: Sequence[str]
) -> Poison:
    """What is done to which pairs."""
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
    poison = poison_of(arguments, attack_of(arguments), (), class_names)
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
