"""The universal triggers that an encoder is purified from: those of the scan's search, and those found since."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.detection.agreement import agreements_of
from peft_cbpt.detection.found import FoundTrigger, find_trigger, load_triggers, save_triggers
from peft_cbpt.detection.ladder import CLIMBS, Climb, Search, sized
from peft_cbpt.detection.universal import approach, collapse

FAMILIES = tuple(dict.fromkeys(climb.family for climb in CLIMBS))
FILE = "triggers.safetensors"
DIRECTIONS = "directions"
EVENLY = 0.1
"""Part of the draws in which all triggers are alike, so that none is forgotten."""


@dataclass
class TriggerPool:
    """The triggers that are trained against.

    No size and no class is chosen for an attack. A trigger's worth is its danger, how much more alike it makes images
    than they are without it, by the cosine of where it moves them to the nearest place that families of triggers agree
    on (`detection.agreement`). A family is drawn by its worthiest trigger, and of its triggers those by which a small
    change does it: any encoder's images can be brought together by changes that are large.

    Args:
        capacity: How many are kept, at most.
        directions: The places that families agree on, or that are suspected, unit-norm (K, D).
        strength: How strongly, in [0, 1], 1 where something is suspected: by this much a tower is pulled at.
        triggers: What is in it.
        worths: Of each, when it was last trained against.
    """

    capacity: int
    directions: Tensor
    strength: float
    triggers: list[FoundTrigger] = field(default_factory=list)
    worths: list[float] = field(default_factory=list)

    @classmethod
    def of_searches(
        cls, searches: Sequence[Search], capacity: int, device: torch.device, suspected: Sequence[Tensor] = ()
    ) -> "TriggerPool":
        """What a scan found that is worth most, by where families agree or by directions (D,) that it suspects."""
        agreed = agreements_of(searches)
        directions = torch.stack([*suspected] or [one.direction for one in agreed])
        strength = 1.0 if suspected else agreed[0].strength
        pool = cls(capacity, F.normalize(directions.float(), dim=1).to(device), strength)
        for one in searches:
            found = FoundTrigger(one.trigger.kind, one.trigger.mark.to(device))
            pool.add(found, pool.worth(one.features.to(device), one.clean.to(device)).item())
        return pool

    def worth(self, triggered: Tensor, clean: Tensor) -> Tensor:
        """Of a trigger, from features (B, D) with and without it: in [0, 1], without gradient."""
        shift = (triggered - clean).detach().mean(0)
        danger = collapse(triggered.detach()) - collapse(clean.detach())
        nearest = F.cosine_similarity(shift[None], self.directions.to(shift)).max()
        return danger.clamp(min=0) * nearest.clamp(min=0)

    @property
    def weights(self) -> np.ndarray:
        """How often every trigger is drawn."""
        worths = np.array(self.worths)
        small = worths / np.array([one.kind.size for one in self.triggers]) ** 2
        families = np.array([type(one.kind).__name__ for one in self.triggers])
        weights = np.zeros(len(worths))
        for family in set(families[worths > 0]):
            own = families == family
            weights[own] = worths[own].max() * small[own] / small[own].sum()
        weights = weights / weights.sum() if weights.any() else weights
        weights = (1 - EVENLY) * weights + EVENLY / len(weights)
        return weights / weights.sum()

    def add(self, trigger: FoundTrigger, worth: float) -> None:
        """Take in a trigger; if there are too many then, the one that would be drawn least goes."""
        self.triggers.append(trigger)
        self.worths.append(worth)
        if len(self.triggers) > self.capacity:
            least = int(np.argmin(self.weights))
            del self.triggers[least], self.worths[least]

    def draw(self, count: int, generator: np.random.Generator) -> list[int]:
        """The places of `count` different triggers."""
        return generator.choice(len(self.triggers), count, replace=False, p=self.weights).tolist()

    def sharpen(self, number: int, mark: Tensor, gradient: Tensor, pixels: Tensor, part: float) -> None:
        """Move a trigger up a gradient that training has computed anyway, `part` of a search's first step."""
        kind = self.triggers[number].kind
        self.triggers[number] = FoundTrigger(kind, kind.stepped(mark, gradient, pixels, part))

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint's folder."""
        numbered = {str(number): one for number, one in enumerate(self.triggers)}
        told = {"worths": self.worths, "strength": self.strength, DIRECTIONS: self.directions.tolist()}
        save_triggers(folder / FILE, numbered, told)

    @classmethod
    def load(cls, folder: Path, capacity: int, device: torch.device) -> "TriggerPool":
        """What `save` wrote."""
        numbered, told = load_triggers(folder / FILE)
        triggers = [FoundTrigger(one.kind, one.mark.to(device)) for one in numbered.values()]
        directions = torch.tensor(told[DIRECTIONS], device=device)
        return cls(capacity, directions, told["strength"], triggers, told["worths"])


def climbs_of(families: Sequence[str]) -> list[Climb]:
    """The scan's searches of some families."""
    return [climb for climb in CLIMBS if climb.family in families]


def find_anew(
    encode_image: EncodeImage,
    pixels: Tensor,
    directions: Tensor,
    families: Sequence[str],
    steps: int,
    generator: np.random.Generator,
) -> FoundTrigger:
    """A trigger that moves the images of an encoder to one of the directions (K, D), of any family, place and size."""
    family = families[int(generator.integers(len(families)))]
    climbs = climbs_of([family])
    climb = climbs[generator.integers(len(climbs))]
    size = climb.sizes[generator.integers(len(climb.sizes))]
    direction = directions[generator.integers(len(directions))]
    return find_trigger(
        encode_image, pixels, approach(direction), sized(climb.kind, size), generator, steps, every_wave=False
    )
