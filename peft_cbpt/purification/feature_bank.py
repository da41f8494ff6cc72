"""What is computed once and kept: clean features, and the perturbed feature of every (sample, y') met so far."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from accelerate.utils import tqdm
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.purification.inversion import InversionSettings, invert_triggers
from peft_cbpt.purification.targets import PositiveRule, choose_positives

LoadPixels = Callable[[Sequence[int]], Tensor]
"""From row numbers to clean float pixels (B, 3, H, W) in [0, 1]."""


@dataclass(frozen=True)
class FeatureBank:
    """The clean, labelled images of D_clean as the frozen encoder sees them.

    Args:
        features: Unit-norm float32 (N, D).
        labels: int64 (N,).
        sample_ids: Stable names, N of them.
    """

    features: Tensor
    labels: Tensor
    sample_ids: Sequence[str]


@torch.no_grad()
def build_feature_bank(
    encode_image: EncodeImage,
    load_pixels: LoadPixels,
    labels: Tensor,
    sample_ids: Sequence[str],
    device: torch.device,
    batch_size: int,
) -> FeatureBank:
    """Encode every clean image once, e_v of Eq. 9."""
    batches = torch.arange(len(labels)).split(batch_size)
    features = [
        encode_image(load_pixels(rows.tolist()).to(device))
        for rows in tqdm(batches, desc="feature bank", unit="batch", leave=False)
    ]
    return FeatureBank(torch.cat(features), labels.to(device), sample_ids)


@dataclass
class PerturbedFeatureCache:
    """Features e'_v of perturbed images, kept by (row, y').

    The optimal perturbation depends on the prompts through y' only, so an entry stays right while prompts learn.
    """

    rows_of: dict[tuple[int, int], int] = field(default_factory=dict)
    features: list[Tensor] = field(default_factory=list)

    def missing(self, rows: Tensor, pseudo_targets: Tensor) -> Tensor:
        """Positions in the batch whose pair is not kept yet, each pair once."""
        pairs = list(zip(rows.tolist(), pseudo_targets.tolist(), strict=True))
        first = {pair: position for position, pair in reversed(list(enumerate(pairs)))}
        return torch.tensor(sorted(at for pair, at in first.items() if pair not in self.rows_of), dtype=torch.int64)

    def add(self, rows: Tensor, pseudo_targets: Tensor, features: Tensor) -> None:
        """Keep the features (B, D) of the pairs."""
        for row, target, feature in zip(rows.tolist(), pseudo_targets.tolist(), features, strict=True):
            self.rows_of[row, target] = len(self.features)
            self.features.append(feature)

    def look_up(self, rows: Tensor, pseudo_targets: Tensor) -> Tensor:
        """Features (B, D) of pairs that are all kept."""
        pairs = zip(rows.tolist(), pseudo_targets.tolist(), strict=True)
        return torch.stack([self.features[self.rows_of[pair]] for pair in pairs])

    def state_dict(self) -> dict[str, Tensor]:
        """The entries as two tensors: `pairs` int64 (K, 2) and `features` (K, D)."""
        if not self.features:
            return {"pairs": torch.empty(0, 2, dtype=torch.int64), "features": torch.empty(0, 0)}
        return {"pairs": torch.tensor(list(self.rows_of)), "features": torch.stack(self.features).cpu()}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Replace the entries by those of `state_dict()`."""
        self.rows_of = {(row, target): index for index, (row, target) in enumerate(state["pairs"].tolist())}
        self.features = list(state["features"].to(device))


@dataclass
class TriggerInverter:
    """The inner loop over the bank: from (row, y') to the feature of the image with its dummy trigger.

    Args:
        encode_image: The frozen encoder.
        load_pixels: Clean pixels of bank rows.
        bank: Clean features, from which positives and negatives come.
        settings: Budget and optimiser of the inversion.
        positives: Rule that chooses v_pos.
        batch_size: Images inverted at once; does not change any result.
        seed: Seed of random positives.
        use_cache: Whether a pair's perturbed feature is kept; without, every look-up inverts anew.
        cache: What is kept.
    """

    encode_image: EncodeImage
    load_pixels: LoadPixels
    bank: FeatureBank
    settings: InversionSettings
    positives: PositiveRule = "farthest"
    batch_size: int = 256
    seed: int = 0
    use_cache: bool = True
    cache: PerturbedFeatureCache = field(default_factory=PerturbedFeatureCache)

    def invert(self, rows: Tensor, pseudo_targets: Tensor) -> Tensor:
        """Perturbed features (B, D) of pairs, computed; in batches of `batch_size`."""
        features = []
        starts = range(0, len(rows), self.batch_size)
        for start in tqdm(starts, desc="trigger inversion", leave=False, disable=len(starts) < 2):
            part, targets = rows[start : start + self.batch_size], pseudo_targets[start : start + self.batch_size]
            bank = self.bank
            chosen = choose_positives(
                self.positives, part, targets, bank.features, bank.labels, bank.sample_ids, self.seed
            )
            pixels = self.load_pixels(part.tolist()).to(bank.features.device)
            delta = invert_triggers(
                self.encode_image, pixels, bank.features[chosen], bank.features[part], self.settings
            )
            with torch.no_grad():
                features.append(self.encode_image(pixels + delta))
        return torch.cat(features)

    def prefetch(self, rows: Tensor, pseudo_targets: Tensor) -> None:
        """Invert and keep those pairs that are not kept yet."""
        missing = self.cache.missing(rows, pseudo_targets)
        if len(missing):
            self.cache.add(rows[missing], pseudo_targets[missing], self.invert(rows[missing], pseudo_targets[missing]))

    def perturbed_features(self, rows: Tensor, pseudo_targets: Tensor) -> Tensor:
        """Perturbed features (B, D) of pairs; only those not met before are inverted, if there is a cache."""
        if not self.use_cache:
            return self.invert(rows, pseudo_targets)
        self.prefetch(rows, pseudo_targets)
        return self.cache.look_up(rows, pseudo_targets)
