"""Where searches of different families agree: no names are needed for that, and no labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_cbpt.detection.ladder import Search
from peft_cbpt.detection.universal import collapse

OF_THE_STRONGEST = 0.5
"""Part of the strongest agreement that another one must have to count: each backdoor of a model has one."""
PART_OF = {"wave": "pattern"}
"""A pattern is a sum of waves, so that the two agree in a clean encoder as well: they are one family here."""
SAME = 0.5
"""Cosine of directions that are taken for one."""


@dataclass(frozen=True)
class Agreement:
    """Of searches of different families.

    Args:
        direction: Where they move images to, unit-norm (D,).
        strength: Product of their dangers and of the cosine of their shifts, at most 1. A backdoor's place is where
            triggers of any family end that come near its own; a clean encoder has one for each family.
    """

    direction: Tensor
    strength: float


def danger(search: Search) -> float:
    """How much more alike a trigger makes the judged images than they are without it."""
    return (collapse(search.features) - collapse(search.clean)).item()


def agreements_of(searches: Sequence[Search]) -> list[Agreement]:
    """The strongest agreement among searches, and others that are nearly as strong.

    Of searches of one family only, the direction of the most dangerous one, with a strength of 0.
    """
    dangers = torch.tensor([max(0.0, danger(one)) for one in searches])
    shifts = F.normalize(torch.stack([one.shift.float() for one in searches]), dim=1)
    families = [PART_OF.get(one.family, one.family) for one in searches]
    different = torch.tensor([[one != other for other in families] for one in families])
    if not different.any():
        return [Agreement(shifts[dangers.argmax()], 0.0)]
    strengths = (dangers[:, None] * dangers * (shifts @ shifts.T)).where(different, torch.tensor(-1.0))
    found: list[Agreement] = []
    for pair in strengths.flatten().argsort(descending=True).tolist():
        one, other = divmod(pair, len(searches))
        strength = max(0.0, strengths[one, other].item())
        if found and strength < OF_THE_STRONGEST * found[0].strength:
            break
        direction = F.normalize(dangers[one] * shifts[one] + dangers[other] * shifts[other], dim=0)
        if all(direction @ known.direction < SAME for known in found):
            found.append(Agreement(direction, strength))
    return found
