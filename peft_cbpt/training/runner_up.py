"""The inner loop as published: every image's own dummy trigger, inverted towards its runner-up class (Eq. 9-11)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from peft_cbpt.common.processes import any_process
from peft_cbpt.detection.found import FoundTrigger
from peft_cbpt.features.store import FeatureStore, fill, missing_anywhere
from peft_cbpt.method.inversion import InversionSettings, invert_triggers
from peft_cbpt.method.targets import PositiveRule, choose_positives, runner_up
from peft_cbpt.training.dummy_triggers import Classify
from peft_cbpt.training.frozen_images import FrozenImages


@dataclass
class RunnerUpTriggers:
    """From (row, y') to the feature e'_v of the image with its dummy trigger; see `DummyTriggers`.

    The optimal perturbation of an image depends on the prompts through y' only, so what is kept under (row, y') stays
    right while prompts learn, and the inner loop runs once for every distinct pair.

    Args:
        images: The clean images; positives and negatives come from their bank.
        settings: Budget and optimiser of the inversion.
        positives: Rule that chooses v_pos.
        seed: Seed of random positives.
        dtype: In what the encoder computes while a trigger is inverted. The image with its trigger is encoded in the
            base model's own dtype in any case.
    """

    images: FrozenImages
    settings: InversionSettings
    positives: PositiveRule = "farthest"
    seed: int = 0
    dtype: torch.dtype = torch.float32
    suspicion: None = field(default=None, init=False)
    triggers: Mapping[tuple[int, int], FoundTrigger] = field(default_factory=dict, init=False)
    store: FeatureStore = field(init=False)
    _known: set[tuple[int, ...]] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        inversion = {name: str(value) for name, value in asdict(self.settings).items()}
        key = {"bank": self.images.key, "inversion": inversion, "positives": self.positives, "dtype": str(self.dtype)}
        drawn = {"seed": self.seed} if self.positives == "random" else {}
        self.store = self.images.cache.open("perturbed", key | drawn)

    def start_epoch(self, epoch: int, classify: Classify) -> None:
        """Invert, in full batches, what the epoch would look up if the prompts stood still; all processes call."""
        bank = self.images.bank
        self._known = set(self.store.keys())
        rows = torch.arange(len(bank.labels), device=bank.labels.device)
        self._invert_missing(torch.stack([rows, runner_up(classify(rows), bank.labels)], 1).cpu())
        self.store.save()

    def perturbed_features(self, rows: Tensor, logits: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Perturbed features (B, D) of bank rows and their y' (B,), from `logits` (B, n_classes); all call."""
        bank = self.images.bank
        pseudo_targets = runner_up(logits, bank.labels[rows])
        pairs = torch.stack([rows, pseudo_targets], 1).cpu()
        if any_process(len(self.store.missing(pairs)) > 0):
            self._invert_missing(missing_anywhere(self.store, pairs))
        return self.store.look_up(pairs).to(bank.features.device), pseudo_targets

    def epoch_figures(self, looked_up: Sequence[tuple[int, int]]) -> dict[str, float]:
        """Of the (row, y') that an epoch looked up the share that was known before it, and what it inverted."""
        new = set(self.store.keys()) - self._known
        self.store.save()
        return {"cache_hit_rate": 1 - len(set(looked_up) & new) / len(looked_up), "inversions": len(new)}

    def _invert_missing(self, pairs: Tensor) -> None:
        def batch_of(pairs: Tensor) -> Tensor:
            return self.invert(*pairs.to(self.images.bank.features.device).T)

        fill(self.store, pairs, batch_of, self.images.batch_size, "trigger inversion")

    def invert(self, rows: Tensor, pseudo_targets: Tensor) -> Tensor:
        """Perturbed features (B, D) of one batch of pairs, computed."""
        bank, encode_image = self.images.bank, self.images.encode_image
        chosen = choose_positives(
            self.positives, rows, pseudo_targets, bank.features, bank.labels, bank.sample_ids, self.seed
        )
        pixels = self.images.load(rows.tolist())
        with torch.autocast(pixels.device.type, self.dtype, enabled=self.dtype != torch.float32):
            delta = invert_triggers(encode_image, pixels, bank.features[chosen], bank.features[rows], self.settings)
        with torch.no_grad():
            return encode_image(pixels + delta)
