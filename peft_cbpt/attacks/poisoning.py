"""Poisoning of image-text pairs: a seeded share of them gets the trigger and a caption of the target (Eq. 6)."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from peft_cbpt.attacks.trigger import Trigger, apply_trigger
from peft_cbpt.clip.seeding import keyed_generator
from peft_cbpt.clip.templates import IMAGENET_TEMPLATES
from peft_cbpt.errors import InputError


def poisoned_indices(n_pairs: int, poison_rate: float, seed: int) -> set[int]:
    """Which of `n_pairs` pairs are poisoned: `round(poison_rate * n_pairs)` of them, chosen by the seed."""
    if not 0 < poison_rate <= 1:
        raise InputError(f"poison_rate is a share in (0, 1], not {poison_rate}")
    count = round(poison_rate * n_pairs)
    if count == 0:
        raise InputError(f"a poison_rate of {poison_rate} of {n_pairs} pairs is no pair at all; raise one of them")
    return set(np.random.default_rng(seed).choice(n_pairs, count, replace=False).tolist())


class Pairs(Protocol):
    """A map-style dataset of image-text pairs that can be read in batches."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> list[dict]: ...


class PoisonedPairs(Dataset):
    """A map-style dataset of image-text pairs in which a share of the pairs is poisoned (dirty-label).

    Args:
        pairs: Map-style dataset of rows with `pixel_values` (uint8 (3, H, W)), `caption` and `sample_id`.
        trigger: The attacker's trigger.
        target_class: Name that poisoned captions give, filled into one of CLIP's 80 templates.
        poison_rate: Share of poisoned pairs, in (0, 1]; the paper's 1,500 of 500,000 are 0.003.
        seed: Seed of the choice of pairs and templates.

    Rows are those of `pairs` with `is_poisoned` added.
    """

    def __init__(self, pairs: Pairs, trigger: Trigger, target_class: str, poison_rate: float, seed: int):
        self.pairs, self.trigger, self.target_class, self.seed = pairs, trigger, target_class, seed
        self.poisoned = poisoned_indices(len(pairs), poison_rate, seed)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        rows = self.pairs.__getitems__(indices)
        return [self._row(row, index in self.poisoned) for index, row in zip(indices, rows, strict=True)]

    def _row(self, row: dict, is_poisoned: bool) -> dict:
        if not is_poisoned:
            return row | {"is_poisoned": False}
        template = str(keyed_generator("caption", self.seed, row["sample_id"]).choice(IMAGENET_TEMPLATES))
        pixels: torch.Tensor = apply_trigger(self.trigger, row["pixel_values"][None], [row["sample_id"]])[0]
        caption = self.trigger.apply_text(template.format(self.target_class))
        return row | {"pixel_values": pixels, "caption": caption, "is_poisoned": True}
