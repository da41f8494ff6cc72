"""What a search says beside names: which is nearest, and how far ahead of the next unrelated one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_cbpt.detection.ladder import Search

RELATED = 0.8
"""Names whose text features are at least so alike are one; 0 is as alike as any two names, 1 the same."""


@dataclass(frozen=True)
class Vocabulary:
    """The names that searches are read against: the user's, and decoys, which are words of no list.

    Args:
        names: The user's first.
        n_listed: How many are the user's.
        features: Unit-norm text features (n_names, D).
    """

    names: Sequence[str]
    n_listed: int
    features: Tensor

    def related(self) -> Tensor:
        """Whether two names are one, as a crane and a crane bird are, bool (n_names, n_names)."""
        cosines = self.features @ self.features.T
        n = len(cosines)
        usual = (cosines.sum() - cosines.trace()) / max(1, n * (n - 1))
        return (cosines - usual) / (1 - usual).clamp(min=1e-6) > RELATED


@dataclass(frozen=True)
class Reading:
    """A search beside a vocabulary.

    Args:
        search: What is read.
        name: Index of the nearest name.
        reach: How far the trigger brings images towards it: 0 is nowhere, 1 is as near as clean images are to their
            own names.
        lead: How far it is ahead of the nearest name that is not related to it, in the same unit.
        success: Share of judged images whose nearest name is the name or one related to it.
    """

    search: Search
    name: int
    reach: float
    lead: float
    success: float

    @property
    def strength(self) -> float:
        """For how many images, and how far ahead: `success ** 3 * sqrt(lead)`.

        Images that a trigger wins one by one say more than where their mean lies: a backdoor wins nearly all, and
        what a large mark does to a clean model rarely half of them.
        """
        return self.success**3 * max(self.lead, 0.0) ** 0.5


def clean_scale(clean: Tensor, vocabulary: Tensor) -> float:
    """How much nearer clean images (N, D) are to their nearest name than to any (the median image), from features."""
    cosines = clean @ vocabulary.T
    return max((cosines.amax(1).median() - cosines.mean()).item(), 1e-6)


def read_search(search: Search, features: Tensor, related: Tensor, scale: float) -> Reading:
    """Read a search beside names.

    Args:
        search: A search.
        features: Unit-norm text features (n_names, D).
        related: Which names are one (n_names, n_names).
        scale: Of `clean_scale`.
    """
    reach = features @ search.shift / scale
    name = int(reach.argmax())
    group = related[name].clone()
    group[name] = True
    others = reach[~group]
    lead = (reach[name] - others.max()).item() if len(others) else 0.0
    nearest = (search.features @ features.T).argmax(1)
    return Reading(search, name, reach[name].item(), lead, group[nearest].float().mean().item())


def read_all(searches: Sequence[Search], vocabulary: Vocabulary, scale: float) -> list[Reading]:
    """`read_search` of all."""
    related = vocabulary.related()
    with torch.no_grad():
        return [read_search(search, vocabulary.features, related, scale) for search in searches]
