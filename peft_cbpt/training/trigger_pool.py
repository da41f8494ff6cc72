"""Universal triggers that an encoder is purified from: a ladder of kinds, and a pool of what was found of them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.detection.families import (
    FIRST_STEP,
    Colour,
    FoundTrigger,
    ImageWide,
    Kind,
    Patch,
    Pattern,
    Warp,
    Wave,
    find_trigger,
)
from peft_cbpt.detection.universal import collapse

RUNGS = (0.02, 0.036, 0.06, 0.1, 0.17, 0.3)
"""Sizes, each about 1.7 times the one before, from what fine noise needs to a third of the range of pixels."""
PLACES = (None, *((top / 2, left / 2) for top in range(3) for left in range(3)))
"""Of patches: another place on every image, or one of nine."""
FAMILIES: dict[str, Callable[[float], Sequence[Kind]]] = {
    "image": lambda size: [ImageWide(size)],
    "patch": lambda size: [Patch(size, place) for place in PLACES],
    "wave": lambda size: [Wave(size)],
    "pattern": lambda size: [Pattern(size), Pattern(size, grey=False)],
    "warp": lambda size: [Warp(size)],
    "colour": lambda size: [Colour(size)],
}
_KINDS: dict[str, type] = {kind.__name__: kind for kind in (ImageWide, Patch, Wave, Pattern, Warp, Colour)}
FILE = "triggers.safetensors"
LEAST_DANGER = 0.05
"""That a trigger counts as, so that none is forgotten."""


@torch.no_grad()
def ladder(
    encode_image: EncodeImage, pixels: Tensor, families: Sequence[str], generator: np.random.Generator
) -> list[list[Kind]]:
    """The kinds to look for triggers among, each family from the smallest size to the largest that makes sense.

    A size makes sense while the encoder still tells images apart that have the same *random* mark of it: at least
    half of them are nearest to what they were themselves, under the best of three marks. Beyond, the images are
    hidden, and an encoder that gave their features all the same would have to guess. The smallest size always does.

    Args:
        encode_image: The encoder as it was given.
        pixels: Clean images (B, 3, H, W) in [0, 1].
        families: Names of `FAMILIES`.
        generator: Draws the marks.

    Returns:
        Rungs of all families; a rung is the kinds of one size.
    """
    clean, itself = encode_image(pixels), torch.arange(len(pixels), device=pixels.device)
    side = (pixels.shape[-2], pixels.shape[-1])

    def told_apart(kind: Kind) -> float:
        mark = kind.at_full_size(kind.draw(side, generator).to(pixels), pixels)
        return ((encode_image(kind.apply(pixels, mark)) @ clean.T).argmax(1) == itself).float().mean().item()

    rungs: list[list[Kind]] = []
    for family in families:
        for size in RUNGS:
            kinds = FAMILIES[family](size)
            if size > RUNGS[0] and max(told_apart(kinds[number % len(kinds)]) for number in range(3)) < 0.5:
                break
            rungs.append(list(kinds))
    return rungs


@dataclass
class TriggerPool:
    """The triggers that are trained against.

    Args:
        rungs: From `ladder`.
        capacity: How many are kept; then a new one takes the place of the least dangerous one.
        triggers: What is in it.
        dangers: How much more alike each trigger makes images than they are without it, by `collapse`, when it was
            last trained against; the more, the more often it is drawn.
    """

    rungs: list[list[Kind]]
    capacity: int
    triggers: list[FoundTrigger] = field(default_factory=list)
    dangers: list[float] = field(default_factory=list)

    def add(self, encode_image: EncodeImage, pixels: Tensor, steps: int, generator: np.random.Generator) -> int:
        """Find a trigger of a random rung that collapses images of the encoder as it is; its place in the pool."""
        rung = self.rungs[generator.integers(len(self.rungs))]
        kind = rung[generator.integers(len(rung))]
        found = find_trigger(encode_image, pixels, collapse, kind, generator, steps)
        with torch.no_grad():
            danger = (collapse(encode_image(found(pixels))) - collapse(encode_image(pixels))).item()
        if len(self.triggers) < self.capacity:
            self.triggers.append(found)
            self.dangers.append(danger)
            return len(self.triggers) - 1
        place = int(np.argmin(self.dangers))
        self.triggers[place], self.dangers[place] = found, danger
        return place

    def draw(self, count: int, generator: np.random.Generator) -> list[int]:
        """The places of `count` different triggers, the dangerous ones more often."""
        weights = np.maximum(self.dangers, LEAST_DANGER)
        return generator.choice(len(weights), count, replace=False, p=weights / weights.sum()).tolist()

    def sharpen(self, number: int, mark: Tensor, gradient: Tensor, pixels: Tensor, part: float) -> None:
        """Move a trigger up a gradient that training has computed anyway, `part` of a search's first step."""
        kind = self.triggers[number].kind
        length = kind.at_full_size(mark, pixels).norm() * FIRST_STEP * part
        step = length * gradient / gradient.norm().clamp(min=torch.finfo(gradient.dtype).tiny)
        self.triggers[number] = FoundTrigger(kind, kind.within(mark + step, pixels))

    def save(self, folder: Path) -> None:
        """Write rungs and triggers into a checkpoint's folder."""

        def described(kind: Kind) -> dict[str, Any]:
            return {"kind": type(kind).__name__, **asdict(kind)}  # type: ignore[call-overload]

        marks = {str(number): one.mark.cpu().contiguous() for number, one in enumerate(self.triggers)}
        kinds = [described(one.kind) for one in self.triggers]
        rungs = [[described(kind) for kind in rung] for rung in self.rungs]
        described_pool = {"kinds": kinds, "rungs": rungs, "dangers": self.dangers}
        save_file(marks, folder / FILE, {name: json.dumps(value) for name, value in described_pool.items()})

    @classmethod
    def load(cls, folder: Path, capacity: int, device: torch.device) -> "TriggerPool":
        """What `save` wrote."""

        def kind_of(described: dict[str, Any]) -> Kind:
            settings = {name: tuple(value) if isinstance(value, list) else value for name, value in described.items()}
            kind: Kind = _KINDS[settings.pop("kind")](**settings)
            return kind

        with safe_open(folder / FILE, "pt") as file:
            described = {name: json.loads(value) for name, value in file.metadata().items()}
            kinds = [kind_of(one) for one in described["kinds"]]
            rungs = [[kind_of(one) for one in rung] for rung in described["rungs"]]
            marks = [file.get_tensor(str(number)).to(device) for number in range(len(kinds))]
        triggers = [FoundTrigger(*pair) for pair in zip(kinds, marks, strict=True)]
        return cls(rungs, capacity, triggers, described["dangers"])
