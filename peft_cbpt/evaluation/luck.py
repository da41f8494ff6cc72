"""Binomial tests: is it luck that something happens so often?"""

import math

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
