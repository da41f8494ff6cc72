"""The inner loop over the bank: what is inverted, for whom, by which process, and how it is kept."""

from dataclasses import dataclass

import torch
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.common.processes import from_all_processes, num_processes
from peft_cbpt.features.bank import FeatureBank, LoadPixels
from peft_cbpt.features.store import FeatureStore, fill, missing_anywhere
from peft_cbpt.method.inversion import InversionSettings, invert_triggers
from peft_cbpt.method.targets import PositiveRule, choose_positives


def pairs_of(rows: Tensor, pseudo_targets: Tensor) -> Tensor:
    """The keys of perturbed features: (row, y'), int64 (B, 2).

    The optimal perturbation of an image depends on the prompts through y' only, so an entry stays right while prompts
    learn.
    """
    return torch.stack([rows, pseudo_targets], 1)


@dataclass
class TriggerInverter:
    """From (row, y') to the feature e'_v of the image with its dummy trigger.

    Args:
        encode_image: The frozen encoder.
        load_pixels: Clean pixels of bank rows.
        bank: Clean features, from which positives and negatives come.
        settings: Budget and optimiser of the inversion.
        positives: Rule that chooses v_pos.
        batch_size: Images inverted at once; does not change any result.
        seed: Seed of random positives.
        dtype: In what the encoder computes while a trigger is inverted. The image with its trigger is encoded in
            the base model's own dtype in any case.
        store: What is kept, by `pairs_of`; None inverts anew at every look-up.
    """

    encode_image: EncodeImage
    load_pixels: LoadPixels
    bank: FeatureBank
    settings: InversionSettings
    positives: PositiveRule = "farthest"
    batch_size: int = 256
    seed: int = 0
    dtype: torch.dtype = torch.float32
    store: FeatureStore | None = None

    def invert(self, rows: Tensor, pseudo_targets: Tensor) -> Tensor:
        """Perturbed features (B, D) of one batch of pairs, computed."""
        bank = self.bank
        chosen = choose_positives(
            self.positives, rows, pseudo_targets, bank.features, bank.labels, bank.sample_ids, self.seed
        )
        pixels = self.load_pixels(rows.tolist()).to(bank.features.device)
        with torch.autocast(pixels.device.type, self.dtype, enabled=self.dtype != torch.float32):
            delta = invert_triggers(
                self.encode_image, pixels, bank.features[chosen], bank.features[rows], self.settings
            )
        with torch.no_grad():
            return self.encode_image(pixels + delta)

    def missing(self, rows: Tensor, pseudo_targets: Tensor) -> bool:
        """Whether a pair is not kept yet."""
        return self.store is not None and len(self.store.missing(pairs_of(rows, pseudo_targets))) > 0

    def prefetch(self, pairs: Tensor, ahead: Tensor) -> None:
        """Invert and keep those of `pairs` (B, 2) that are not kept yet, each process its share; all must call.

        The processes' last batches are filled up with pairs of `ahead`, the same in all processes: the first that are
        not kept yet. These are the first to be written: if the run is killed in between, the resumed run computes the
        same batches.
        """
        assert self.store is not None
        wanted = missing_anywhere(self.store, pairs)
        room = -len(wanted) % (self.batch_size * num_processes())
        more = from_all_processes(ahead.cpu()[self.store.missing(ahead)][:room])[0]

        def invert(batch: Tensor) -> Tensor:
            return self.invert(*batch.to(self.bank.features.device).T)

        fill(self.store, torch.cat([more, wanted]), invert, self.batch_size, "trigger inversion")

    def perturbed_features(self, rows: Tensor, pseudo_targets: Tensor) -> Tensor:
        """Perturbed features (B, D) of pairs: looked up if there is a store, which must have them; else inverted."""
        if self.store is not None:
            return self.store.look_up(pairs_of(rows, pseudo_targets)).to(self.bank.features.device)
        parts = zip(rows.split(self.batch_size), pseudo_targets.split(self.batch_size), strict=True)
        return torch.cat([self.invert(*part) for part in parts])
