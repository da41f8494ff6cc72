"""Which classes dummy triggers aim at, and with which kinds of triggers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_cbpt.detection.families import ImageWide, Kind
from peft_cbpt.detection.reading import Reading, Vocabulary
from peft_cbpt.detection.verdict import Finding, Weighed

MOST_CANDIDATES = 4
MOST_KINDS = 3
"""Of triggers that are not over the whole image, those that show a class most clearly."""


@dataclass(frozen=True)
class Suspect:
    """A class that a backdoor may aim at.

    Args:
        label: The class.
        family: Of the trigger that shows it most clearly, or `words`.
        score: See `verdict.Finding`; 0 for a class that no search names.
        false_alarm_rate: How often a model without a backdoor comes to this score, under the null.
        kinds: Of the triggers that show it, the clearest first; without those over the whole image.
    """

    label: int
    family: str
    score: float
    false_alarm_rate: float
    kinds: tuple[Kind, ...] = ()


@dataclass(frozen=True)
class Suspicion:
    """What dummy triggers aim at.

    Args:
        suspects: The findings of the scan among the user's classes.
        candidates: Where there is none, the classes that come nearest to it. They are accused of nothing.
    """

    suspects: list[Suspect]
    candidates: list[Suspect]

    @property
    def aims(self) -> list[Suspect]:
        """The suspects, or the candidates where there are none."""
        return self.suspects or self.candidates


def suspicion_from(weighed: Weighed, readings: Sequence[Reading], vocabulary: Vocabulary) -> Suspicion:
    """The findings among the user's classes; or, where there is none, candidates.

    Candidates are the doubts, then the classes that searches name, the strongest first, then those that any search
    comes nearest to; `MOST_CANDIDATES` of them, if there are as many.

    Args:
        weighed: Of `weigh`.
        readings: All of them.
        vocabulary: What they were read against; a class is its place among the user's names.
    """
    labels = {name: label for label, name in enumerate(vocabulary.names[: vocabulary.n_listed])}
    naming = _readings_of_classes(readings, vocabulary)

    def suspects(found: Sequence[Finding]) -> list[Suspect]:
        return [
            Suspect(labels[one.name], one.kind, one.score, one.false_alarm_rate, _kinds(naming[labels[one.name]]))
            for one in found
            if one.name is not None
        ]

    if found := suspects(weighed.findings):
        return Suspicion(found, [])
    candidates = {one.label: one for one in suspects(weighed.doubts)}
    strengths = [max((one.strength for one in readings), default=0.0) for readings in naming]
    shifts = torch.stack([reading.search.shift for reading in readings])
    nearest = (vocabulary.features[: vocabulary.n_listed] @ shifts.T).amax(1).tolist()
    for label in sorted(labels.values(), key=lambda label: (strengths[label], nearest[label]), reverse=True):
        if len(candidates) < MOST_CANDIDATES and label not in candidates:
            family = max(naming[label], key=lambda one: one.strength).search.family if naming[label] else "none"
            candidates[label] = Suspect(label, family, strengths[label], 1.0, _kinds(naming[label]))
    return Suspicion([], list(candidates.values()))


def _readings_of_classes(readings: Sequence[Reading], vocabulary: Vocabulary) -> list[list[Reading]]:
    """Of every class of the user's, the readings that name it or a word that is the same; the strongest first."""
    related: Tensor = vocabulary.related()
    strongest_first = sorted(readings, key=lambda one: one.strength, reverse=True)
    return [
        [one for one in strongest_first if one.name == label or related[one.name, label]]
        for label in range(vocabulary.n_listed)
    ]


def _kinds(readings: Sequence[Reading]) -> tuple[Kind, ...]:
    kinds = [one.search.trigger.kind for one in readings if not isinstance(one.search.trigger.kind, ImageWide)]
    return tuple(dict.fromkeys(kinds))[:MOST_KINDS]
