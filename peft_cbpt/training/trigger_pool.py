"""Universal triggers that an encoder is purified from: a ladder of kinds, and a pool of what was found of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.detection.families import Colour, ImageWide, Kind, Patch, Pattern, Warp, Wave
from peft_cbpt.detection.found import FoundTrigger, find_trigger, load_triggers, save_triggers
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
FILE = "triggers.safetensors"
COLLAPSED = 0.5
"""A danger; 0 is that of no trigger, and 1 would be all images in one point."""
LEAST_DANGER = 0.05
"""That a trigger counts as, so that none is forgotten."""


@dataclass
class TriggerPool:
    """The triggers that are trained against.

    Sizes are not chosen for an attack: each family goes up from the smallest. It stops where a trigger that was looked
    for brings the encoder's images half of the way together (`COLLAPSED`), as a backdoor's does at a small size and
    any encoder's at a large one: larger ones would only cost clean features. As training takes such a trigger's power,
    the family goes up again; but never to a size at which even random marks hide the images (`told_apart`).

    Args:
        families: Names of `FAMILIES`.
        capacity: How many are kept; then a new one takes the place of the least dangerous one.
        rungs: How many of `RUNGS` each family has gone up.
        triggers: What is in it.
        dangers: How much more alike each trigger makes images than they are without it, by `collapse`, when it was
            last trained against; the more, the more often it is drawn.
    """

    families: list[str]
    capacity: int
    rungs: dict[str, int] = field(default_factory=dict)
    triggers: list[FoundTrigger] = field(default_factory=list)
    dangers: list[float] = field(default_factory=list)

    def climb(
        self, encode_image: EncodeImage, pixels: Tensor, family: str, steps: int, generator: np.random.Generator
    ) -> None:
        """Take a family up from the smallest size, keeping the triggers found."""
        self.rungs[family] = 0
        before = -1
        while self.rungs[family] > before:
            before = self.rungs[family]
            self.add(encode_image, pixels, family, steps, generator)

    def add(
        self, encode_image: EncodeImage, pixels: Tensor, family: str, steps: int, generator: np.random.Generator
    ) -> int:
        """Find a trigger of the largest size so far that collapses the encoder's images; its place in the pool."""
        kind = _kind(family, self.rungs[family], generator)
        found = find_trigger(encode_image, pixels, collapse, kind, generator, steps)
        with torch.no_grad():
            danger = (collapse(encode_image(found(pixels))) - collapse(encode_image(pixels))).item()
        if danger < COLLAPSED and self.rungs[family] + 1 < len(RUNGS):
            larger = _kind(family, self.rungs[family] + 1, generator)
            self.rungs[family] += told_apart(encode_image, pixels, larger, generator) >= 0.5
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
        self.triggers[number] = FoundTrigger(kind, kind.stepped(mark, gradient, pixels, part))

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint's folder."""
        numbered = {str(number): one for number, one in enumerate(self.triggers)}
        save_triggers(folder / FILE, numbered, {"rungs": self.rungs, "dangers": self.dangers})

    @classmethod
    def load(cls, folder: Path, families: list[str], capacity: int, device: torch.device) -> "TriggerPool":
        """What `save` wrote."""
        numbered, told = load_triggers(folder / FILE)
        triggers = [FoundTrigger(one.kind, one.mark.to(device)) for one in numbered.values()]
        return cls(families, capacity, told["rungs"], triggers, told["dangers"])


@torch.no_grad()
def told_apart(encode_image: EncodeImage, pixels: Tensor, kind: Kind, generator: np.random.Generator) -> float:
    """Part of the images that, under a random mark of a kind, are nearest to what they are without it."""
    side = (pixels.shape[-2], pixels.shape[-1])
    mark = kind.at_full_size(kind.draw(side, generator).to(pixels), pixels)
    nearest = (encode_image(kind.apply(pixels, mark)) @ encode_image(pixels).T).argmax(1)
    return (nearest == torch.arange(len(pixels), device=nearest.device)).float().mean().item()


def _kind(family: str, rung: int, generator: np.random.Generator) -> Kind:
    kinds = FAMILIES[family](RUNGS[rung])
    return kinds[int(generator.integers(len(kinds)))]
