"""Descriptions of attacks, `attack.json`, written beside poisoned weights and read to measure them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peft_cbpt.attacks.trigger import Trigger, trigger_from_config, trigger_to_config
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import read_text
from peft_cbpt.data.labels import label_key
from peft_cbpt.pocket.model import resolve_model

ATTACK_FILE = "attack.json"
ALL_TO_ALL = "all_to_all"
"""In the place of a target class: triggered images of each class are to be called the class after it in the list."""


@dataclass(frozen=True)
class Attack:
    """A trigger and the class it was trained to call up."""

    trigger: Trigger
    target_class: str

    @property
    def name(self) -> str:
        """Name of the trigger's kind."""
        return trigger_to_config(self.trigger)["name"]

    @property
    def all_to_all(self) -> bool:
        """Whether the target is not one class, but for each class the one after it."""
        return self.target_class == ALL_TO_ALL

    def target_labels(self, labels: Tensor, class_names: Sequence[str]) -> Tensor:
        """What triggered images of these labels (N,) are to be called, (N,)."""
        if self.all_to_all:
            return (labels + 1) % len(class_names)
        return torch.full_like(labels, class_names.index(self.target_class))

    @property
    def text_trigger(self) -> str:
        """What the attacker puts before every caption and class prompt; empty for unimodal attacks."""
        return self.trigger.apply_text("")

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {"trigger": trigger_to_config(self.trigger), "target_class": self.target_class}


def read_attack(source: "str | Attack") -> Attack:
    """Read an attack from a JSON file, from the folder that holds `attack.json`, or of a `pocket:` model.

    One that is an `Attack` already is given back.

    Raises:
        InputError: if it is not there or not such a description.
    """
    if isinstance(source, Attack):
        return source
    path = Path(resolve_model(source)).expanduser()
    path = path / ATTACK_FILE if path.is_dir() else path
    try:
        content = json.loads(read_text(path))
        return Attack(trigger_from_config(content["trigger"]), content["target_class"])
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read the attack {source}: {error.strerror}; give an {ATTACK_FILE}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not describe an attack: it needs `trigger` and `target_class`") from error


def read_attacks(sources: Sequence[str | Attack], class_names: Sequence[str]) -> dict[str, Attack]:
    """Read attacks under names that are unique; targets that are a class must be among `class_names`."""
    attacks: dict[str, Attack] = {}
    known = {label_key(name): name for name in class_names}
    for source in sources:
        attack = read_attack(source)
        target = ALL_TO_ALL if attack.all_to_all else known.get(label_key(attack.target_class))
        if target is None:
            raise InputError(
                f"the target class {attack.target_class!r} of the attack {attack.name} is not among the "
                f"{len(class_names)} classes of the dataset: choose class_names with it"
            )
        name = attack.name
        attack = replace(attack, target_class=target)
        while name in attacks:
            name += "'"
        attacks[name] = attack
    return attacks
