"""Universal triggers of a kind, found against an image encoder."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.common.ascent import input_gradient
from peft_cbpt.common.files import save_tensors
from peft_cbpt.detection.families import Kind, Wave, describe_kind, kind_from
from peft_cbpt.features.plan import Passes

DRAWN = 16
"""Marks that a search chooses its start from."""
AT_ONCE = 32
"""Images under different marks that are encoded together."""
FEW = 4
"""Images on which that many are chosen among all waves."""
START = 0.7
"""Part of the full size that a search starts from."""


@dataclass(frozen=True)
class FoundTrigger:
    """A universal trigger: a mark of a kind."""

    kind: Kind
    mark: Tensor

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] with the trigger."""
        return self.kind.apply(pixels, self.mark.to(pixels))


def save_triggers(file: Path, triggers: Mapping[str, FoundTrigger], also: Mapping[str, Any] | None = None) -> None:
    """Write triggers by name, and what else is JSON-serialisable, into one safetensors file."""
    kinds = {name: describe_kind(one.kind) for name, one in triggers.items()}
    told = {"kinds": kinds, **(also or {})}
    marks = {name: one.mark.cpu().contiguous() for name, one in triggers.items()}
    save_tensors(file, marks, {name: json.dumps(value) for name, value in told.items()})


def load_triggers(file: Path) -> tuple[dict[str, FoundTrigger], dict[str, Any]]:
    """What `save_triggers` wrote."""
    with safe_open(file, "pt") as stored:
        told = {name: json.loads(value) for name, value in stored.metadata().items()}
        kinds = told.pop("kinds")
        triggers = {name: FoundTrigger(kind_from(kind), stored.get_tensor(name)) for name, kind in kinds.items()}
    return triggers, told


def flattened(mark: Tensor, side: tuple[int, int]) -> Tensor:
    """A mark as a row (3 * H * W,) with zeros behind it, so that those of all kinds can be kept together."""
    return F.pad(mark.flatten(), (0, 3 * side[0] * side[1] - mark.numel()))


def unflattened(row: Tensor, kind: Kind, side: tuple[int, int]) -> Tensor:
    """The mark of a kind that `flattened` made a row of."""
    shape = kind.draw(side, np.random.default_rng(0)).shape
    return row[: shape.numel()].view(shape)


def find_trigger(
    encode_image: EncodeImage,
    pixels: Tensor,
    objective: Callable[[Tensor], Tensor],
    kind: Kind,
    generator: np.random.Generator,
    steps: int = 20,
    every_wave: bool = True,
) -> FoundTrigger:
    """A trigger of a kind that makes `objective` of the images' features large.

    The best of `DRAWN` random marks, or of all waves; where a kind is searched, it goes on from there by steps up the
    gradient, which shrink. From one random mark alone most searches for a patch end where no backdoor is.

    Args:
        encode_image: From pixels in [0, 1] to unit-norm features; only a gradient to its input is asked for.
        pixels: Images, float (B, 3, H, W) in [0, 1].
        objective: From features (B, D) to a number.
        kind: Which marks may be.
        generator: Draws the marks.
        steps: Of ascent.
        every_wave: Whether all waves are tried, or as few random ones as marks of other kinds.
    """
    side = (pixels.shape[-2], pixels.shape[-1])

    def best(marks: Sequence[Tensor], count: int, images: Tensor) -> list[Tensor]:
        marks = [kind.at_full_size(mark.to(pixels), images) for mark in marks]
        values: list[float] = []
        at_once = max(1, AT_ONCE // len(images))
        for first in range(0, len(marks), at_once):
            part = marks[first : first + at_once]
            features = encode_image(torch.cat([kind.apply(images, mark) for mark in part]))
            values += [objective(one).item() for one in features.split(len(images))]
        return [marks[place] for place in np.argsort(values, kind="stable")[::-1][:count]]

    with torch.no_grad():
        if every_wave and isinstance(kind, Wave):
            drawn = best(kind.every(side), DRAWN, pixels[:FEW])
        else:
            drawn = [kind.draw(side, generator) for _ in range(DRAWN)]
        (mark,) = best(drawn, 1, pixels)
    if not kind.searched:
        return FoundTrigger(kind, mark)
    mark = START * mark
    for step in range(steps):
        mark = ascend(lambda it: objective(encode_image(kind.apply(pixels, it))), mark, kind, pixels, 1 - step / steps)
    return FoundTrigger(kind, mark)


def found_passes(kind: Kind, n_images: int, steps: int) -> Passes:
    """Of `find_trigger` on so many images; those small ones that have fewer waves take less."""
    waves = len(kind.every((4 * kind.most, 4 * kind.most))) * min(FEW, n_images) if isinstance(kind, Wave) else 0
    return Passes(waves + DRAWN * n_images, steps * n_images if kind.searched else 0)


def ascend(value_of: Callable[[Tensor], Tensor], mark: Tensor, kind: Kind, pixels: Tensor, part: float) -> Tensor:
    """The mark after a step up the gradient of `value_of`, `part` of the first step long."""
    gradient = input_gradient(value_of, mark)
    with torch.no_grad():
        return kind.stepped(mark, gradient, pixels, part)
