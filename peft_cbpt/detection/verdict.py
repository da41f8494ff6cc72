"""Is a model backdoored, and towards what: readings of all searches weighed together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from peft_cbpt.detection.reading import Reading, Vocabulary
from peft_cbpt.detection.statistic import MOVED, Null, null_of

FALSE_ALARMS = 0.002
"""A finding is what the model's null comes to less often than this."""
DOUBT = 0.05
"""Between the two rates a verdict is `unsure`."""
MOST_TARGETS = 4
MOST_WORDS = 5

Answer = Literal["clean", "backdoored", "unsure"]


@dataclass(frozen=True)
class Finding:
    """What triggers lead to.

    Args:
        name: Of the user's classes; None where the nearest name is none of theirs.
        words: The nearest names or words, the nearest first.
        kind: Family of the strongest trigger.
        score: Of the strongest search of every kind of trigger that names it, the second largest strength: one may
            come near anything by chance, and patches at two places find the same thing. Of a doubt, the second
            largest of all searches. Between 0 and 1; see `reading.Reading`.
        false_alarm_rate: How often a model without a backdoor comes to this score, under the null.
        rms: The smallest size (root mean square change of a pixel's channel, in [0, 1]) of half the largest.
        success_rate: Share of judged images that the strongest trigger brings nearest to it.
        n_searches: How many searches name it.
        best: The strongest search.
    """

    name: str | None
    words: list[str]
    kind: str
    score: float
    false_alarm_rate: float
    rms: float
    success_rate: float
    n_searches: int
    best: Reading


@dataclass(frozen=True)
class Weighed:
    """Findings, and those that are too weak to be one, the surest first.

    Args:
        findings: What is rarer than `FALSE_ALARMS`.
        doubts: What is rarer than `DOUBT`.
        null: What findings were held against.
        least_rate: The smallest false-alarm rate of any name, 1 where no two searches name the same.
    """

    findings: list[Finding]
    doubts: list[Finding]
    null: Null
    least_rate: float = 1.0

    @property
    def rare(self) -> list[Finding]:
        """The findings, and doubts as rare as they are: it may be that triggers of one kind alone show them."""
        return [one for one in [*self.findings, *self.doubts] if one.false_alarm_rate <= FALSE_ALARMS]

    @property
    def answer(self) -> Answer:
        """The verdict in a word."""
        if self.findings:
            return "backdoored"
        return "unsure" if self.doubts else "clean"


def weigh(readings: Sequence[Reading], vocabulary: Vocabulary) -> Weighed:
    """Find the names that lead further than chance.

    Two targets would hide each other if each were held against a null with the other in it. So the null is what is
    left without the names that lead furthest: as many of them, `MOST_TARGETS` at most, as are all findings against it.
    Searches that name the same are not independent, so that what is paid for is the number of such names.
    """
    related = vocabulary.related()
    moved = [reading for reading in readings if reading.reach >= MOVED]
    groups = sorted(_groups(moved, related), key=score_of_kinds, reverse=True)
    for n_targets in range(min(MOST_TARGETS, len(groups)), -1, -1):
        null = null_of(_without(moved, groups[:n_targets]))
        found = [
            _finding(one, score_of_kinds(one), null, len(groups), vocabulary, related) for one in groups[:n_targets]
        ]
        if all(one.false_alarm_rate <= FALSE_ALARMS for one in found):
            break
    doubts = [
        _finding(
            one, _score(one), null_of(_without(moved, [*groups[:n_targets], one])), len(groups), vocabulary, related
        )
        for one in groups[n_targets:]
    ]
    least = min((one.false_alarm_rate for one in [*found, *doubts]), default=1.0)
    doubts = [one for one in doubts if one.false_alarm_rate <= DOUBT]
    return Weighed(_surest_first(found), _surest_first(doubts), null, least)


def _surest_first(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda one: one.false_alarm_rate)


def _score(group: Sequence[Reading]) -> float:
    """The second largest strength."""
    return sorted(reading.strength for reading in group)[-2]


def score_of_kinds(group: Sequence[Reading]) -> float:
    """The second largest of the strongest of every kind, 0 of one kind alone; grey and coloured patterns are two."""
    strongest: dict[tuple[type, bool], float] = {}
    for reading in group:
        kind = reading.search.trigger.kind
        which = type(kind), getattr(kind, "grey", False)
        strongest[which] = max(strongest.get(which, 0.0), reading.strength)
    return sorted([0.0, *strongest.values()])[-2]


def _without(readings: Sequence[Reading], groups: Sequence[Sequence[Reading]]) -> list[Reading]:
    inside = {id(reading) for group in groups for reading in group}
    return [reading for reading in readings if id(reading) not in inside]


def _same(related: Tensor, one: int, other: int) -> bool:
    return one == other or bool(related[one, other])


def _groups(readings: Sequence[Reading], related: Tensor) -> list[list[Reading]]:
    """Readings that name the same, for names with at least two; each is in one group, that of the commonest."""
    left, groups = list(readings), []
    for name, _ in Counter(reading.name for reading in readings).most_common():
        group = [reading for reading in left if _same(related, reading.name, name)]
        if len(group) > 1:
            groups.append(group)
            left = _without(left, [group])
    return groups


def _finding(
    group: Sequence[Reading], score: float, null: Null, n_groups: int, vocabulary: Vocabulary, related: Tensor
) -> Finding:
    best = max(group, key=lambda one: one.strength)
    name, words = nearest_words(best, vocabulary, related)
    return Finding(
        name,
        words,
        best.search.family,
        score,
        null.false_alarm_rate(score, n_groups),
        min(one.search.size for one in group if one.strength >= best.strength / 2),
        best.success,
        len(group),
        best,
    )


def nearest_words(reading: Reading, vocabulary: Vocabulary, related: Tensor) -> tuple[str | None, list[str]]:
    """The user's class that a reading names, itself or by a word related to it, and the nearest words."""
    reach = vocabulary.features @ reading.search.shift
    own = [name for name in range(vocabulary.n_listed) if _same(related, name, reading.name)]
    words = [vocabulary.names[place] for place in reach.topk(min(MOST_WORDS, len(reach))).indices.tolist()]
    return (vocabulary.names[max(own, key=lambda name: reach[name].item())] if own else None), words
