"""How unlikely a lead is in a model without a backdoor: the null is the same model.

In any model some name is the nearest to where a universal trigger brings images, so that a bar on how near it comes
accuses somebody as soon as there are names enough. How far the nearest is *ahead* of the next unrelated name is
another matter: the spacing of the two largest of many numbers is exponential with a scale that does not grow with how
many there are (Renyi, 1953). That scale is estimated from the model's own searches which name somebody else, together
with what clean models gave; its posterior is a gamma distribution, and a lead's false-alarm rate follows by
integrating over it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from peft_cbpt.detection.reading import Reading

USUAL_LEAD = 0.04
"""Mean lead of searches in clean models: see `benchmarks/scan.py`, first half of the models."""
USUAL_COUNT = 10
"""How many searches of a model's own count as much as that."""
MOVED = 0.3
"""`reach` from which a search says anything: triggers that leave images where they are lead nowhere."""


@dataclass(frozen=True)
class Null:
    """Leads where nobody is the target.

    Args:
        count: Leads that the scale is estimated from, those of clean models included.
        total: Their sum.
    """

    count: float
    total: float

    def false_alarm_rate(self, lead: float, searches: int) -> float:
        """The chance that the largest of so many leads comes to `lead`, at most 1.

        P(X > x) = (total / (total + x)) ** count for one lead (exponential, its rate gamma-distributed), times
        `searches` (Bonferroni).
        """
        return min(1.0, searches * (self.total / (self.total + max(lead, 0.0))) ** self.count)


def null_of(readings: Sequence[Reading]) -> Null:
    """From searches that do not name the suspect."""
    leads = [reading.lead for reading in readings if reading.reach >= MOVED]
    return Null(USUAL_COUNT + len(leads), USUAL_COUNT * USUAL_LEAD + sum(leads))
