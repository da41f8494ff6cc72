"""How unlikely it is in a model without a backdoor that a trigger leads so far: the null is the same model.

In any model some name is the nearest to where a universal trigger brings images, so that a bar on how near it comes
accuses somebody as soon as there are names enough. How far the nearest is *ahead* of the next unrelated name is
another matter: the spacing of the two largest of many numbers is exponential with a scale that does not grow with how
many there are (Renyi, 1953). What is weighed is the strength of a search: that lead together with the share of
images that the trigger wins. Its scale is estimated from the model's own searches which name somebody else, together
with what clean models gave; the posterior is a gamma distribution, and the false-alarm rate follows by integrating
over it. Tails of strengths are somewhat heavier than exponential, which is why a finding must be far rarer than is
usual.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from peft_cbpt.detection.reading import Reading

USUAL_STRENGTH = 0.03
"""Mean strength of a search in a clean model, with room: the pocket's has 0.002 (see `benchmarks/scan.py`)."""
USUAL_COUNT = 10
"""How many searches of a model's own count as much as that."""
MOVED = 0.3
"""`reach` from which a search says anything: triggers that leave images where they are say nothing."""


@dataclass(frozen=True)
class Null:
    """Strengths where nobody is the target.

    Args:
        count: How many the scale is estimated from, those of clean models included.
        total: Their sum.
    """

    count: float
    total: float

    def false_alarm_rate(self, strength: float, tried: int) -> float:
        """The chance that the largest of so many comes to `strength`, at most 1.

        P(X > x) = (total / (total + x)) ** count for one (exponential, its rate gamma-distributed), times `tried`
        (Bonferroni).
        """
        return min(1.0, tried * (self.total / (self.total + max(strength, 0.0))) ** self.count)


def null_from(strengths: Sequence[float]) -> Null:
    """From strengths of a model's own."""
    return Null(USUAL_COUNT + len(strengths), USUAL_COUNT * USUAL_STRENGTH + sum(strengths))


def null_of(readings: Sequence[Reading]) -> Null:
    """From searches that do not name the suspect."""
    return null_from([reading.strength for reading in readings if reading.reach >= MOVED])
