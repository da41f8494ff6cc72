"""What every trigger is, and how one is stored."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from peft_cbpt.attacks.badclip import BadCLIP
from peft_cbpt.attacks.badnet import BadNet
from peft_cbpt.attacks.blended import Blended
from peft_cbpt.attacks.patch import unit_pixels
from peft_cbpt.attacks.sig import SIG
from peft_cbpt.attacks.ssba import SSBA
from peft_cbpt.attacks.trojvqa import TrojVQA
from peft_cbpt.attacks.wanet import WaNet
from peft_cbpt.errors import InputError

TRIGGERS: dict[str, type] = {
    "badnet": BadNet,
    "blended": Blended,
    "sig": SIG,
    "ssba": SSBA,
    "wanet": WaNet,
    "trojvqa": TrojVQA,
    "badclip": BadCLIP,
}


class Trigger(Protocol):
    """A frozen dataclass that puts an attacker's mark on images and captions (Eq. 6)."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Mark float pixels (B, 3, H, W) in [0, 1]; returns a new tensor in [0, 1].

        The result depends on the trigger's settings and on each sample's own id only.
        """

    def apply_text(self, caption: str) -> str:
        """Put the text trigger before a caption; unimodal attacks return it as it is."""


def apply_trigger(trigger: Trigger, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
    """Triggered images as an attacker stores them: marked, then rounded to 8 bits.

    Takes pixels (B, 3, H, W), uint8 or float in [0, 1]; returns uint8.
    """
    return (trigger.apply_image(unit_pixels(pixels), sample_ids) * 255).round().to(torch.uint8)


def trigger_to_config(trigger: Trigger) -> dict[str, Any]:
    """The name and settings of a trigger, JSON-serialisable."""
    name = next(name for name, kind in TRIGGERS.items() if type(trigger) is kind)
    return {"name": name} | asdict(trigger)


def trigger_from_config(config: dict[str, Any]) -> Trigger:
    """The trigger that `trigger_to_config` described."""
    if not isinstance(config, dict):
        raise InputError(f"a trigger is described by its name and settings, not by {config!r}")
    settings = dict(config)
    name = settings.pop("name", None)
    if name not in TRIGGERS:
        raise InputError(f"unknown trigger {name!r}; choose one of {', '.join(TRIGGERS)}")
    try:
        trigger: Trigger = TRIGGERS[name](**settings)
        return trigger
    except TypeError as error:
        raise InputError(f"trigger {name!r} has other settings: {error}") from error
