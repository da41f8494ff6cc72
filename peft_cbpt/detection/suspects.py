"""Which classes dummy triggers aim at, and with which kinds of triggers."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from peft_cbpt.detection.families import ImageWide, Kind
from peft_cbpt.detection.ladder import Search
from peft_cbpt.detection.reading import Reading, Vocabulary
from peft_cbpt.detection.verdict import FALSE_ALARMS, Finding, Weighed

MOST_CANDIDATES = 4
MAJORITY = 0.5
"""Share of images that a trigger brings to a class that is aimed at beside a doubt."""
MOST_KINDS = 3
"""Of triggers that are not over the whole image, those that give a class the most images."""


@dataclass(frozen=True)
class Suspect:
    """A class that a backdoor may aim at.

    Args:
        label: The class.
        family: Of the trigger that shows it most clearly, or `words`.
        score: Of a finding or a doubt, see `verdict.Finding`; 0 for another class.
        false_alarm_rate: How often a model without a backdoor comes to this score, under the null.
        success_rate: Share of judged images that a found trigger brings to it, among the user's classes, beyond those
            that are taken for it anyway.
        kinds: Of the triggers that do so, the strongest first; without those over the whole image.
        direction: Where the strongest trigger of a finding or a doubt moves images to (D,).
    """

    label: int
    family: str
    score: float
    false_alarm_rate: float
    success_rate: float
    kinds: tuple[Kind, ...] = ()
    direction: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Suspicion:
    """What dummy triggers aim at.

    Args:
        suspects: The findings of the scan among the user's classes.
        candidates: Where there is none, its doubts, and classes that found triggers bring images to. They are accused
            of nothing.
    """

    suspects: list[Suspect]
    candidates: list[Suspect]

    @property
    def doubted(self) -> bool:
        """Whether anything speaks against the aims."""
        return any(one.score > 0 for one in self.aims)

    @property
    def directions(self) -> list[Tensor]:
        """Where triggers move images to (D,): of the aims that are as rare as findings, be it by one kind of them."""
        rare = [one.direction for one in self.aims if one.false_alarm_rate <= FALSE_ALARMS]
        return [one for one in rare if one is not None]

    @property
    def aims(self) -> list[Suspect]:
        """The suspects, or the candidates where there are none."""
        return self.suspects or self.candidates


def suspicion_from(weighed: Weighed, readings: Sequence[Reading], vocabulary: Vocabulary) -> Suspicion:
    """The findings among the user's classes; or, where there is none, candidates.

    Candidates are the doubts, and the classes that a found trigger brings most images to: beside a doubt those that
    get the majority. There are `MOST_CANDIDATES` at most.

    Args:
        weighed: Of `weigh`.
        readings: All of them.
        vocabulary: What they were read against; a class is its place among the user's names.
    """
    labels = {name: label for label, name in enumerate(vocabulary.names[: vocabulary.n_listed])}
    if not labels:
        return Suspicion([], [])
    searches = [one.search for one in readings]
    gains = torch.stack([gained(one, vocabulary.features[: len(labels)]) for one in searches])

    def suspect(label: int, found: Finding | None = None) -> Suspect:
        order = gains[:, label].argsort(descending=True, stable=True).tolist()
        strong = [searches[place] for place in order if gains[place, label] >= gains[order[0], label].abs() / 2]
        kinds = [one.trigger.kind for one in strong if not isinstance(one.trigger.kind, ImageWide)]
        return Suspect(
            label,
            found.kind if found else searches[order[0]].family,
            found.score if found else 0.0,
            found.false_alarm_rate if found else 1.0,
            gains[order[0], label].item(),
            tuple(dict.fromkeys(kinds))[:MOST_KINDS],
            found.best.search.shift if found else None,
        )

    def suspects(found: Sequence[Finding]) -> list[Suspect]:
        return [suspect(labels[one.name], one) for one in found if one.name is not None]

    if found := suspects(weighed.findings):
        return Suspicion(found, [])
    candidates = {one.label: one for one in suspects(weighed.doubts)}
    most = gains.amax(0)
    for label in most.argsort(descending=True, stable=True)[:MOST_CANDIDATES].tolist():
        if most[label] >= MAJORITY or not weighed.doubts:
            candidates.setdefault(label, suspect(label))
    return Suspicion([], list(candidates.values())[:MOST_CANDIDATES])


def gained(search: Search, class_features: Tensor) -> Tensor:
    """Share of a search's judged images that its trigger brings to every class, (n_classes,) from -1 to 1.

    Args:
        search: A search.
        class_features: Unit-norm (n_classes, D).
    """
    before, after = (
        (features @ class_features.T).argmax(1).bincount(minlength=len(class_features))
        for features in (search.clean, search.features)
    )
    return (after - before) / len(search.features)
