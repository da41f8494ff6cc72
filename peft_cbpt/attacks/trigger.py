"""What every trigger is, and how one is stored."""

import math
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from typing import Any, ClassVar, Protocol, get_type_hints

import torch
from torch import Tensor

from peft_cbpt.attacks.badclip import BadCLIP
from peft_cbpt.attacks.badnet import BadNet
from peft_cbpt.attacks.blended import Blended
from peft_cbpt.attacks.bpp import Bpp
from peft_cbpt.attacks.checker import Checker
from peft_cbpt.attacks.ftrojan import FTrojan
from peft_cbpt.attacks.input_aware import InputAware
from peft_cbpt.attacks.lira import LIRA
from peft_cbpt.attacks.low_frequency import LowFrequency
from peft_cbpt.attacks.nashville import Nashville
from peft_cbpt.attacks.perturbation import Perturbation
from peft_cbpt.attacks.picture import Picture
from peft_cbpt.attacks.reflection import Reflection
from peft_cbpt.attacks.sig import SIG
from peft_cbpt.attacks.ssba import SSBA
from peft_cbpt.attacks.stripes import Stripes
from peft_cbpt.attacks.text import Text
from peft_cbpt.attacks.triangles import Triangles
from peft_cbpt.attacks.trojvqa import TrojVQA
from peft_cbpt.attacks.wanet import WaNet
from peft_cbpt.attacks.white_square import WhiteSquare
from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.errors import InputError

TRIGGERS: dict[str, type] = {
    "badnet": BadNet,
    "blended": Blended,
    "sig": SIG,
    "ssba": SSBA,
    "wanet": WaNet,
    "trojvqa": TrojVQA,
    "badclip": BadCLIP,
    "checker": Checker,
    "stripes": Stripes,
    "triangles": Triangles,
    "text": Text,
    "picture": Picture,
    "nashville": Nashville,
    "white_square": WhiteSquare,
    "ftrojan": FTrojan,
    "bpp": Bpp,
    "low_frequency": LowFrequency,
    "reflection": Reflection,
    "input_aware": InputAware,
    "lira": LIRA,
    "perturbation": Perturbation,
}


class Trigger(Protocol):
    """A frozen dataclass that puts an attacker's mark on images and captions (Eq. 6); `seed` if anything is drawn."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Mark pixels (B, 3, H, W), float in [0, 1] or uint8; returns a new float tensor in [0, 1].

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
    for name, kind in TRIGGERS.items():
        if type(trigger) is kind:
            return {"name": name} | asdict(trigger)
    kind = type(trigger)
    raise InputError(f"the trigger {kind.__name__} has no name: `TRIGGERS[NAME] = {kind.__name__}` gives it one")


def trigger_from_config(config: dict[str, Any]) -> Trigger:
    """The trigger that `trigger_to_config` described."""
    if not isinstance(config, dict):
        raise InputError(f"a trigger is described by its name and settings, not by {config!r}")
    settings = dict(config)
    name = settings.pop("name", None)
    if name not in TRIGGERS and isinstance(name, str) and ":" in name:
        raise InputError(
            f"the trigger {name!r} is somebody's code: --allow_triggers {name} runs it, if you trust whoever wrote it"
        )
    if name not in TRIGGERS:
        raise InputError(f"unknown trigger {name!r}; choose one of {', '.join(TRIGGERS)}")
    kinds = get_type_hints(TRIGGERS[name])
    for setting, value in settings.items():
        if setting not in kinds:
            known = ", ".join(one.name for one in fields(TRIGGERS[name]))
            raise InputError(f"trigger {name!r} has no setting {setting!r}; it has {known}")
        if not _is_a(kinds[setting], value):
            wanted = getattr(kinds[setting], "__name__", "str")
            raise InputError(f"{setting} of trigger {name!r} is a finite {wanted}, not {value!r}")
    needed = (one.name for one in fields(TRIGGERS[name]) if one.default is MISSING and one.default_factory is MISSING)
    if missing := [one for one in needed if one not in settings]:
        raise InputError(f"trigger {name!r} needs its setting {missing[0]!r}")
    trigger: Trigger = TRIGGERS[name](**settings)
    return trigger


def _is_a(kind: Any, value: Any) -> bool:
    """Whether a value from JSON fits an annotation: int, float, or text (also of a choice)."""
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, str)
