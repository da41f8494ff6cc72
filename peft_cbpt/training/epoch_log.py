"""What an epoch of purification is summed up by."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field


@dataclass
class EpochLog:
    """Running means over the samples of one epoch."""

    sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    samples: Counter[str] = field(default_factory=Counter)
    pseudo_targets: Counter[int] = field(default_factory=Counter)

    def add(self, n_samples: int, **means: float) -> None:
        """Add a batch of `n_samples` by its means."""
        for name, mean in means.items():
            self.sums[name] += float(mean) * n_samples
            self.samples[name] += n_samples

    def means(self) -> dict[str, float]:
        """The epoch's means."""
        return {name: self.sums[name] / self.samples[name] for name in self.sums}
