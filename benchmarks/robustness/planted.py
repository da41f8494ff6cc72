"""Planted triggers: what a scan says of the model, and how it answers before and after a defence."""

from typing import Any

from benchmarks.robustness.defences import Defended
from benchmarks.robustness.world import World
from peft_cbpt.attacks.attack_file import read_attacks
from peft_cbpt.evaluation.measure import encode_images, measure
from peft_cbpt.scanning import Verdict, scan


def measured(model: str, defended: Defended, world: World) -> dict[str, Any]:
    """CA, and ASR and true class under each trigger, on the test images."""
    names = world.class_names()
    attacks = read_attacks(world.attacks(model), names)
    triggers = {name: attack.trigger for name, attack in attacks.items()}
    device = defended.clip.model.device
    encoded = encode_images(defended.encoder(), world.test(defended.clip), triggers, device)
    return measure(encoded, lambda key: defended.head(names, key), attacks, names)


def planted(model: str, defended: Defended, world: World, seed: int) -> dict[str, Any]:
    """The figures."""
    return measured(model, defended, world)


def scanned(model: str, defended: Defended, world: World, seed: int) -> dict[str, Any]:
    """What `scan` says with its defaults and the names of the classes."""
    verdict = scan(defended.clip, world.dataset, world.class_names(), split=world.shots_split, seed=seed)
    assert isinstance(verdict, Verdict)
    return {
        "verdict": verdict.verdict,
        "findings": [[one.name, one.false_alarm_rate] for one in verdict.findings],
        "doubts": [[one.name, one.false_alarm_rate] for one in verdict.doubts],
    }
