"""Does an image carry a trigger? The undefended head is sure of a class there, and the purified head denies it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_cbpt.common.errors import InputError
from peft_cbpt.detection.heads import Heads, log_odds

FALSE_POSITIVE_RATE = 0.01


def trigger_scores(image_features: Tensor, heads: Heads, label: int | None = None) -> Tensor:
    """Scores (N,) of images, in log-odds; the higher the more like a triggered image.

    For the class in question it is the lower of two: the undefended head's log-odds for it, and the purified head's
    against it. It is high only where one head is sure of what the other is sure it is not.

    Args:
        image_features: Unit-norm (N, D).
        heads: The purified head and the undefended one.
        label: The class that a scan found; by default, of every image the class that the undefended head says.
    """
    odds = log_odds(image_features, heads.undefended.to(image_features), heads.scale)
    chosen = odds.argmax(1) if label is None else torch.full_like(odds[:, 0], label, dtype=torch.int64)
    against = -log_odds(image_features, heads.adapted.to(image_features), heads.scale)
    return torch.minimum(*(one.gather(1, chosen[:, None])[:, 0] for one in (odds, against)))


@dataclass(frozen=True)
class Threshold:
    """From which score on an image is flagged: it must be above `value`.

    Args:
        value: A quantile of clean images' scores.
        level: At most so many of other clean images are flagged, on average, in (0, 1).
        n_images: How many scores it was set on.
    """

    value: float
    level: float
    n_images: int


def conformal_threshold(scores: Tensor, false_positive_rate: float = FALSE_POSITIVE_RATE) -> Threshold:
    """The threshold that other clean images are above with at most the given rate (split conformal).

    An image like `n` others ranks above the k-th smallest of them with a chance of (n + 1 - k) / (n + 1) at most. So
    the level cannot be below 1 / (n + 1): with too few scores the threshold is the largest of them, at that level.
    Images that the purified head was tuned on are not like others: on these its answers are surer, and the threshold
    that they give is too low.

    Args:
        scores: Of clean images (N,), at least one.
        false_positive_rate: In (0, 1).

    Raises:
        InputError: if the rate is not.

    >>> conformal_threshold(torch.arange(99.0), 0.05)
    Threshold(value=94.0, level=0.05, n_images=99)
    >>> conformal_threshold(torch.arange(4.0), 0.01)
    Threshold(value=3.0, level=0.2, n_images=4)
    """
    if not 0 < false_positive_rate < 1:
        raise InputError(f"the false-positive rate is a share in (0, 1), not {false_positive_rate}")
    n = len(scores)
    rank = min(n, math.ceil(round((n + 1) * (1 - false_positive_rate), 9)))
    return Threshold(scores.sort().values[rank - 1].item(), (n + 1 - rank) / (n + 1), n)


def auroc(positive: Tensor, negative: Tensor) -> float:
    """The chance that a score of the first (N,) is above one of the second (M,); ties count half.

    >>> auroc(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]))
    0.875
    """
    ordered = negative.sort().values
    below, not_above = (torch.searchsorted(ordered, positive, right=right) for right in (False, True))
    return ((below + not_above).double().mean() / (2 * len(ordered))).item()


def f1(flagged_positive: Tensor, flagged_negative: Tensor) -> float:
    """F1 of flags, bool (N,) of triggered images and bool (M,) of clean ones.

    >>> f1(torch.tensor([True, True, False]), torch.tensor([True, False, False]))
    0.6666666666666666
    """
    hits = int(flagged_positive.sum())
    return 2 * hits / max(1, len(flagged_positive) + hits + int(flagged_negative.sum()))
