"""What an epoch of purification is summed up by."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class EpochLog:
    """Running means over the samples of one epoch."""

    sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    samples: Counter[str] = field(default_factory=Counter)
    looked_up: list[tuple[int, int]] = field(default_factory=list)
    """The (row, y') of every look-up of a perturbed feature."""

    def add(self, n_samples: int, **means: float | Tensor) -> None:
        """Add a batch of `n_samples` by its means."""
        for name, mean in means.items():
            self.sums[name] += float(mean) * n_samples
            self.samples[name] += n_samples

    def pseudo_targets(self) -> Counter[int]:
        """How often each class was y'."""
        return Counter(target for _, target in self.looked_up)

    def merge(self, other: "EpochLog") -> None:
        """Add what another process saw of the same epoch."""
        for name in other.sums:
            self.sums[name] += other.sums[name]
        self.samples.update(other.samples)
        self.looked_up += other.looked_up

    def means(self) -> dict[str, float]:
        """The epoch's means."""
        return {name: self.sums[name] / self.samples[name] for name in self.sums}
