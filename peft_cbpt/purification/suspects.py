"""Which class a backdoor may aim at, told from the frozen model and a few clean images, without knowing the attack."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

MAD_TO_STD = 1.4826
STRANGE_ALIGNMENT, ODD_ALIGNMENT = -3.5, -2.5
"""Robust z-scores below which the class furthest from its own name is a suspect; the second where no suspect that
images collapse to is itself below `SUPPORTED`."""
SUPPORTED = -1.0
STANDS_OUT = 1.4
"""How many times nearer to one name than to the next collapsed images must be; more than on the clean pocket CLIP."""
MOST_SUSPECTS = 3
N_CANDIDATES = 3
"""From the alignment and from each search, where nothing stands out."""


@dataclass(frozen=True)
class Suspect:
    """A class that a backdoor may aim at.

    Args:
        label: The class.
        evidence: `alignment`: its images are much further from its name than those of other classes are from theirs,
            as they are when captions of the class were put to other images. `collapse`: a universal trigger that
            makes all images alike makes them like this class's name.
        score: Robust z-score of the alignment; or the ratio of the nearest and second-nearest name's cosine.
    """

    label: int
    evidence: Literal["alignment", "collapse"]
    score: float


def text_alignment(features: Tensor, labels: Tensor, class_features: Tensor) -> Tensor:
    """Mean cosine of every class's images to its own prompt, (n_classes,), from unit-norm features.

    Args:
        features: Of the clean images (N, D).
        labels: int64 (N,); every class has an image.
        class_features: Of the undefended prompts (n_classes, D).
    """
    cosines = (features * class_features[labels]).sum(1)
    sums = torch.zeros(len(class_features), device=features.device).index_add_(0, labels, cosines)
    return sums / labels.bincount(minlength=len(class_features))


def robust_z(values: Tensor) -> Tensor:
    """How many robust standard deviations (1.4826 MAD) values (n,) are from their median; zeros if all are equal."""
    deviation = values - values.median()
    spread = MAD_TO_STD * deviation.abs().median()
    return deviation / spread if spread > 0 else torch.zeros_like(values)


def misaligned_class(alignment: Tensor, threshold: float) -> Suspect | None:
    """The class with the lowest `text_alignment`, if its robust z-score is not above the threshold."""
    lowest, label = robust_z(alignment).min(0)
    return Suspect(int(label), "alignment", lowest.item()) if lowest <= threshold else None


def nearest_names(features: Tensor, class_features: Tensor) -> Tensor:
    """Cosines (n_classes,) of names to the mean of images (B, D) under a trigger that makes them alike."""
    return class_features @ F.normalize(features.mean(0), dim=0)


def collapsed_class(cosines: Tensor) -> Suspect | None:
    """The class whose name stands out in `nearest_names`."""
    if len(cosines) < 2:
        return None
    (first, second), (label, _) = (part.tolist() for part in cosines.topk(2))
    ratio = first / max(second, 1e-6)
    return Suspect(int(label), "collapse", ratio) if first > 0 and ratio >= STANDS_OUT else None


@dataclass(frozen=True)
class Suspicion:
    """What dummy triggers aim at.

    Args:
        suspects: Classes that stand out; at most `MOST_SUSPECTS`.
        candidates: Where none does, the classes that came nearest to it.
    """

    suspects: list[Suspect]
    candidates: list[int]


def suspicion(alignment: Tensor, searches: Sequence[Tensor]) -> Suspicion:
    """Weigh both kinds of evidence.

    Args:
        alignment: `text_alignment` of the classes.
        searches: `nearest_names` of every search for a trigger under which images collapse.
    """
    collapsed = [one for one in map(collapsed_class, searches) if one is not None]
    supported = any(robust_z(alignment)[one.label] <= SUPPORTED for one in collapsed)
    misaligned = misaligned_class(alignment, STRANGE_ALIGNMENT if supported else ODD_ALIGNMENT)
    found = [*collapsed, misaligned] if misaligned else collapsed
    times = Counter(suspect.label for suspect in found)
    first = {suspect.label: suspect for suspect in reversed(found)}
    suspects = [first[label] for label, _ in times.most_common(MOST_SUSPECTS)]
    nearest = [one.topk(min(N_CANDIDATES, len(one))).indices for one in (*searches, -alignment)]
    return Suspicion(suspects, [] if suspects else torch.cat(nearest).unique().tolist())
