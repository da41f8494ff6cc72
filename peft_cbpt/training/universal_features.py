"""Images under universal triggers towards classes, encoded as they are needed and kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.detection.suspects import Suspect
from peft_cbpt.detection.target_search import SEARCH_IMAGES, search_rows
from peft_cbpt.detection.universal import Budget, approach, universal_trigger
from peft_cbpt.features.bank import FeatureBank, LoadPixels
from peft_cbpt.features.plan import Passes
from peft_cbpt.features.store import FeatureStore, fill, missing_anywhere

TRIGGER_BUDGETS = (Budget(0.036), Budget(0.06), Budget(0.108), Budget(0.166, pattern=True))
"""A BadNet patch of an eighth of the side has about 0.048, Blended more, SIG 0.166; patterns come last."""


def budgets_against(suspect: Suspect) -> int:
    """How many of `TRIGGER_BUDGETS` go against a suspect: no patterns if a trigger without them showed it."""
    return sum(suspect.evidence != "collapse" or not budget.pattern for budget in TRIGGER_BUDGETS)


def find_universal_triggers(
    encode_image: EncodeImage,
    load_pixels: LoadPixels,
    bank: FeatureBank,
    class_features: Tensor,
    suspects: Sequence[Suspect],
    store: FeatureStore,
    seed: int,
) -> dict[tuple[int, int], Tensor]:
    """A trigger (3, H, W) towards each suspect within each of its budgets, by (class, number of the budget).

    They are kept in `store`, flat; each process finds its share of those that it lacks, and all must call.
    """
    jobs = [(suspect.label, budget) for suspect in suspects for budget in range(budgets_against(suspect))]
    if not jobs:
        return {}
    rows = search_rows(bank.labels, keyed_generator("universal trigger", seed))
    pixels = load_pixels(rows).to(bank.features.device)

    def find(job: Tensor) -> Tensor:
        label, budget = job[0].tolist()
        objective = approach(class_features[label])
        return universal_trigger(encode_image, pixels, objective, TRIGGER_BUDGETS[budget]).flatten()[None]

    keys = torch.tensor(jobs)
    fill(store, keys, find, 1, "universal triggers")
    store.save()
    found = store.look_up(keys).unflatten(1, pixels.shape[1:])
    return dict(zip(jobs, found, strict=True))


def trigger_passes(n_images: int) -> Passes:
    """Of `find_universal_triggers` against one suspect with all budgets."""
    return Passes(gradient=sum(budget.steps for budget in TRIGGER_BUDGETS) * min(SEARCH_IMAGES, n_images))


@dataclass(frozen=True)
class UniversalFeatures:
    """Features of images under universal triggers, by (row, class, number of the budget).

    Args:
        encode_image: The frozen encoder.
        load_pixels: Clean pixels of bank rows.
        triggers: From `find_universal_triggers`.
        store: What is kept.
        batch_size: Images encoded at once.
    """

    encode_image: EncodeImage
    load_pixels: LoadPixels
    triggers: dict[tuple[int, int], Tensor]
    store: FeatureStore
    batch_size: int

    @torch.no_grad()
    def fetch(self, keys: Tensor, device: torch.device) -> None:
        """Encode those of `keys` (B, 3) that are not kept yet, each process its share; all processes must call."""

        def encode(batch: Tensor) -> Tensor:
            deltas = torch.stack([self.triggers[label, budget] for _, label, budget in batch.tolist()])
            images = self.load_pixels(batch[:, 0].tolist()).to(device) + deltas.to(device)
            return self.encode_image(images.clamp(0, 1))

        wanted = missing_anywhere(self.store, keys)
        fill(self.store, wanted, encode, self.batch_size, "images under universal triggers")
        self.store.save()

    def look_up(self, keys: Tensor) -> Tensor:
        """Features (B, D), on the CPU, of keys that were fetched."""
        return self.store.look_up(keys)
