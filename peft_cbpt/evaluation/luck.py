"""Binomial tests: is it luck that something happens so often?"""

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

LEVEL = 0.01
"""What is less likely than this is not luck."""


def luck(right: int, total: int, chance: float) -> float:
    """How often so many or more of `total` guesses are right where each is with probability `chance`, in (0, 1)."""
    yes, no = math.log(chance), math.log1p(-chance)
    ways = (math.exp(_log_ways(n, total) + n * yes + (total - n) * no) for n in range(right, total + 1))
    return math.fsum(ways)


def _log_ways(n: int, total: int) -> float:
    """Of how many ways there are to choose n of `total`, which is too large for a float."""
    return math.lgamma(total + 1) - math.lgamma(n + 1) - math.lgamma(total - n + 1)


def drives(with_trigger: Tensor, without: Tensor) -> bool:
    """Whether more images are called the target with a trigger than luck explains.

    Args:
        with_trigger: Which images of other classes are called the target, boolean (N,).
        without: The same without the trigger, or by a clean model; with one image more on either side (Laplace) their
            share is the chance that the binomial test gives every image.
    """
    n = len(without)
    return luck(int(with_trigger.sum()), n, (int(without.sum()) + 1) / (n + 2)) < LEVEL


def warn_of_idle(cells: Iterable[Mapping[str, Any]]) -> None:
    """Warn of triggers that drive none of the classifiers on a dataset; see `drives`.

    Args:
        cells: Figures of classifiers under attacks. Those that were stored by older code do not tell.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["attack"], cell["dataset"]), []).append(cell)
    for (attack, dataset), group in groups.items():
        if any(cell.get("drives", True) for cell in group):
            continue
        best = max(group, key=lambda cell: cell["attack_success_rate"])
        warnings.warn(
            f"the trigger {attack} drives none of the classifiers on {dataset}: "
            f"{best['attack_success_rate']:.1%} of the images are called its target with it, "
            f"{best['untriggered_rate']:.1%} without it. That is right for a clean or purified model; one that should "
            "be backdoored may have been poisoned with other settings or at another image size, or needs more epochs, "
            "a higher poison_rate or a stronger trigger",
            stacklevel=3,
        )
