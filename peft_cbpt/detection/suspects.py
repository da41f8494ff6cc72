"""Which class a backdoor may aim at, told from the frozen model and a few clean images, without knowing the attack."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Evidence = Literal["collapse", "pattern", "words"]
EVIDENCE: tuple[Evidence, ...] = get_args(Evidence)

REACHED = 0.76
"""`reach` from which a name is a suspect."""
REACHED_BY_PATTERN = 0.66
"""The same for coarse patterns, which bring clean CLIPs less near to any name."""
REACHED_AFTER_WORD = 0.85
"""The same for a name with a word before it, which brings any name nearer."""
MOST_SUSPECTS = 3
N_CANDIDATES = 4
"""Where nothing stands out."""
NEAREST_CANDIDATES = 2
"""Of these, those that searches came nearest to; the others are those whose images are furthest from their name."""


@dataclass(frozen=True)
class Suspect:
    """A class that a backdoor may aim at.

    Args:
        label: The class.
        evidence: `collapse`: a universal trigger that makes all images alike brings them to this class's name.
            `pattern`: the same of a coarse, grey trigger.
            `words`: to this class's name after some word, as where a trigger has a key in the text.
        score: Its `reach`.
    """

    label: int
    evidence: Evidence
    score: float


@dataclass(frozen=True)
class CleanCosines:
    """How near clean images are to names.

    Args:
        own: Mean cosine of every class's images to its own name (n_classes,).
        others: Mean cosine of all images to the names of other classes.
        spread: Standard deviation of the latter.
    """

    own: Tensor
    others: float
    spread: float


def clean_cosines(features: Tensor, labels: Tensor, class_features: Tensor) -> CleanCosines:
    """Of unit-norm features.

    Args:
        features: Of the clean images (N, D).
        labels: int64 (N,); every class has an image.
        class_features: Of the undefended prompts (n_classes, D), at least two.
    """
    n_classes = len(class_features)
    images = labels.bincount(minlength=n_classes)
    sums = torch.zeros(n_classes, device=features.device)
    sums = sums.index_add_(0, labels, (features * class_features[labels]).sum(1))
    n_pairs = len(features) * (n_classes - 1)
    own = (features * class_features[labels]).sum(1)
    others = ((features.sum(0) @ class_features.sum(0)) - own.sum()).item() / n_pairs
    squares = (((features.T @ features) * (class_features.T @ class_features)).sum() - own.square().sum()).item()
    return CleanCosines(sums / images, others, max(0.0, squares / n_pairs - others**2) ** 0.5)


def reach(features: Tensor, class_features: Tensor, clean: CleanCosines) -> Tensor:
    """How near images under a universal trigger come to every name (n_classes,).

    0 is as near as clean images are to the names of other classes, 1 as near as they are to their own (the median
    class). It depends neither on the number of classes nor on where a CLIP keeps its cosines. A model whose images are
    no nearer to their own names than they scatter around others' does not know these names: then all are 0.

    Args:
        features: Unit-norm (B, D), of images under one trigger.
        class_features: Of the undefended prompts (n_classes, D).
        clean: Of the clean images.
    """
    scale = clean.own.quantile(0.5).item() - clean.others
    cosines = class_features @ features.mean(0)
    return (cosines - clean.others) / scale if scale > clean.spread else torch.zeros_like(cosines)


@dataclass(frozen=True)
class Suspicion:
    """What dummy triggers aim at.

    Args:
        suspects: Classes that stand out; at most `MOST_SUSPECTS`.
        candidates: Where none does, the classes that come nearest to it; `N_CANDIDATES` of them, if there are as many.
    """

    suspects: list[Suspect]
    candidates: list[int]


def reached_names(searches: Sequence[Tensor], least: float, evidence: Evidence) -> list[Suspect]:
    """The nearest name of every search that reached `least`, those that most searches found first."""
    nearest = [(int(one.argmax()), one.max().item()) for one in searches]
    times = Counter(label for label, score in nearest if score >= least)
    scores = {label: max(score for other, score in nearest if other == label) for label in times}
    return [Suspect(label, evidence, scores[label]) for label, _ in times.most_common(MOST_SUSPECTS)]


def collapsed_names(searches: Sequence[Tensor], patterns: Sequence[Tensor]) -> list[Suspect]:
    """The names that searches for a trigger under which images collapse came to.

    Of those by patterns one at most, and only if it is nearer than any trigger over all pixels came to a suspect.
    """
    found = reached_names(searches, REACHED, "collapse")
    least = max([REACHED_BY_PATTERN, *(suspect.score for suspect in found)])
    by_pattern = reached_names(patterns, least, "pattern")[:1]
    labels = [suspect.label for suspect in found]
    return [*found, *(suspect for suspect in by_pattern if suspect.label not in labels)][:MOST_SUSPECTS]


def nearest_names(searches: Sequence[Tensor], patterns: Sequence[Tensor], after_words: Sequence[Tensor]) -> list[int]:
    """The classes that a search came nearest to, by `reach` as a part of what makes a suspect; the nearest first."""
    parts: dict[int, float] = {}
    kinds = ((searches, REACHED), (patterns, REACHED_BY_PATTERN), (after_words, REACHED_AFTER_WORD))
    for label, part in ((int(one.argmax()), one.max().item() / least) for kind, least in kinds for one in kind):
        parts[label] = max(part, parts.get(label, part))
    return sorted(parts, key=parts.__getitem__, reverse=True)


def suspicion(
    clean: CleanCosines,
    searches: Sequence[Tensor],
    patterns: Sequence[Tensor] = (),
    after_words: Sequence[Tensor] = (),
) -> Suspicion:
    """Weigh the evidence: collapse and patterns together, and words where these show nothing.

    What was not looked for is empty.

    Args:
        clean: Of the clean images.
        searches: `reach` of every search for a trigger under which images collapse.
        patterns: The same of coarse, grey triggers.
        after_words: `reach` of searches with words before the names.
    """
    by_words = reached_names(after_words, REACHED_AFTER_WORD, "words")
    if suspects := collapsed_names(searches, patterns) or by_words:
        return Suspicion(suspects, [])
    nearest = nearest_names(searches, patterns, after_words)[:NEAREST_CANDIDATES]
    furthest_from_name = clean.own.argsort(stable=True).tolist()
    candidates = list(dict.fromkeys([*nearest, *furthest_from_name]))[:N_CANDIDATES]
    return Suspicion([], sorted(candidates))
