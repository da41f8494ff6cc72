"""Poisoning of image-text pairs (Eq. 6): a seeded share of them gets the trigger and a caption of the target.

Dirty label: pairs of any class are marked and their captions replaced by captions of the target. Clean label: only
pairs that already speak of the target are marked, and keep their captions.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
from accelerate.utils import tqdm
from torch.utils.data import Dataset, IterableDataset

from peft_cbpt.attacks.attack_file import ALL_TO_ALL
from peft_cbpt.attacks.trigger import Trigger, apply_trigger
from peft_cbpt.clip.templates import IMAGENET_TEMPLATES
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.seeding import keyed_generator

_CHUNK = 512


@dataclass(frozen=True)
class Poison:
    """What is done to a poisoned pair, and to what share of the pairs.

    Args:
        trigger: The attacker's trigger.
        target_class: What triggered images are to be called; `attack_file.ALL_TO_ALL` for the class after the one that
            a pair's caption names, in the order of `class_names`. Pairs that name none are left alone then.
        poison_rate: Share of poisoned pairs, in (0, 1]; the paper's 1,500 of 500,000 are 0.003. With a clean label it
            is the share of the target's own pairs.
        seed: Seed of the choice of pairs and captions.
        label: `dirty` or `clean`.
        captions: Captions of the target to draw from; CLIP's 80 templates, filled with the target, by default.
        text_only_rate: Share of further pairs that get the trigger before their own caption and keep their image: the
            partly triggered samples of the dual-key attack, so that the text trigger alone changes no meaning.
        class_names: All classes, so that captions of a "hot dog" are not taken for captions of a "dog".
    """

    trigger: Trigger
    target_class: str
    poison_rate: float
    seed: int = 0
    label: Literal["dirty", "clean"] = "dirty"
    captions: Sequence[str] = field(default=())
    text_only_rate: float = 0.0
    class_names: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not 0 < self.poison_rate <= 1:
            raise InputError(f"poison_rate is a share in (0, 1], not {self.poison_rate}")
        if not 0 <= self.text_only_rate <= 1 - self.poison_rate:
            raise InputError(f"text_only_rate is a share of the pairs that are left, not {self.text_only_rate}")
        if self.text_only_rate and self.trigger.apply_text("") == "":
            raise InputError("text_only_rate is for attacks with a text trigger; this one has none")
        if self.label not in ("dirty", "clean"):
            raise InputError(f"label is dirty or clean, not {self.label!r}")
        if self.target_class == ALL_TO_ALL and (self.label == "clean" or self.captions):
            raise InputError(
                "an all-to-all attack has no target of its own: it needs dirty labels and template captions"
            )
        if not self.target_class.strip():
            raise InputError("target_class is empty: name the class that triggered images are to be called")

    def target_of(self, caption: str) -> str | None:
        """What a pair with this caption is to be called; None if it is not to be poisoned."""
        if self.target_class == ALL_TO_ALL:
            named = next((name for name, pattern in self._names if pattern.search(" ".join(caption.split()))), None)
            places = {name: place for place, name in enumerate(self.class_names)}
            return None if named is None else self.class_names[(places[named] + 1) % len(places)]
        return self.target_class if self.label == "dirty" or self.mentions_target(caption) else None

    @cached_property
    def _names(self) -> list[tuple[str, re.Pattern[str]]]:
        """How each class is found in a caption, longer names first."""
        return [(name, _whole(name)) for name in sorted(self.class_names, key=len, reverse=True)]

    def mentions_target(self, caption: str) -> bool:
        """Whether a caption speaks of the target: its name in whole words, in any case, also in the plural with s.

        The name within the name of another of `class_names` ("dog" in "hot dog") does not count.
        """
        words = " ".join(caption.split())
        for longer in self._longer_names():
            words = _whole(longer).sub(" ", words)
        return _whole(self.target_class).search(words) is not None

    def _longer_names(self) -> list[str]:
        target = _whole(self.target_class)
        others = (name for name in self.class_names if name != self.target_class and target.search(name))
        return sorted(others, key=len, reverse=True)

    def apply(self, row: dict) -> dict:
        """The poisoned version of a row of `pixel_values` (uint8 (3, H, W)), `caption` and `sample_id`."""
        pixels = apply_trigger(self.trigger, row["pixel_values"][None], [row["sample_id"]])[0]
        caption = row["caption"]
        if self.label == "dirty":
            target = self.target_of(caption)
            captions = self.captions or [template.format(target) for template in IMAGENET_TEMPLATES]
            caption = str(keyed_generator("caption", self.seed, row["sample_id"]).choice(captions))
        return row | {"pixel_values": pixels, "caption": self.trigger.apply_text(caption), "is_poisoned": True}

    def apply_text_only(self, row: dict) -> dict:
        """The row with the text trigger before its caption; it keeps its meaning and does not count as poisoned."""
        return {"is_poisoned": False} | row | {"caption": self.trigger.apply_text(row["caption"])}


def _whole(name: str) -> re.Pattern[str]:
    """Finds a name as whole words; names may begin and end with signs, as "kite (bird of prey)"."""
    return re.compile(rf"(?<!\w){re.escape(' '.join(name.split()))}s?(?!\w)", re.IGNORECASE)


class Pairs(Protocol):
    """A map-style dataset of image-text pairs that can be read in batches."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> list[dict]: ...


def poisoned_indices(candidates: Sequence[int], poison_rate: float, seed: int) -> set[int]:
    """Which of the candidate pairs are poisoned: `round(poison_rate * n)` of them, chosen by the seed.

    Raises:
        InputError: if that is no pair at all.
    """
    count = round(poison_rate * len(candidates))
    if count == 0:
        raise InputError(
            f"a poison_rate of {poison_rate} of {len(candidates)} pairs is no pair at all; raise one of them"
        )
    return set(np.random.default_rng(seed).choice(candidates, count, replace=False).tolist())


class PoisonedPairs(Dataset):
    """A map-style dataset of image-text pairs in which an exact share of the pairs is poisoned.

    Rows are those of `pairs` with `is_poisoned` added. A clean label or an all-to-all attack reads every pair once, to
    find those that name a class. For several triggers in one model poison the poisoned pairs again, with another seed.

    Args:
        pairs: Map-style dataset of rows with `pixel_values` (uint8 (3, H, W)), `caption` and `sample_id`.
        poison: What is done to which share of them.
    """

    def __init__(self, pairs: Pairs, poison: Poison):
        self.pairs, self.poison = pairs, poison
        any_pair = poison.label == "dirty" and poison.target_class != ALL_TO_ALL
        candidates = range(len(pairs)) if any_pair else self._pairs_with_target()
        self.poisoned = poisoned_indices(candidates, poison.poison_rate, poison.seed)
        left = [index for index in range(len(pairs)) if index not in self.poisoned]
        count = round(poison.text_only_rate * len(pairs))
        self.text_only = set(keyed_generator("text only", poison.seed).choice(left, count, replace=False).tolist())

    def _pairs_with_target(self) -> list[int]:
        found = []
        for start in tqdm(range(0, len(self.pairs), _CHUNK), desc="looking for the target's pairs", leave=False):
            indices = range(start, min(start + _CHUNK, len(self.pairs)))
            rows = self.pairs.__getitems__(indices)
            found += [i for i, row in zip(indices, rows, strict=True) if self.poison.target_of(row["caption"])]
        return found

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        rows = self.pairs.__getitems__(indices)
        return [self._row(index, row) for index, row in zip(indices, rows, strict=True)]

    def _row(self, index: int, row: dict) -> dict:
        if index in self.poisoned:
            return self.poison.apply(row)
        return self.poison.apply_text_only(row) if index in self.text_only else {"is_poisoned": False} | row


class PoisonedStream(IterableDataset):
    """A stream of image-text pairs, each poisoned with the probability `poison_rate`, drawn by seed and sample id.

    Args:
        pairs: Any iterable of rows as in `PoisonedPairs`.
        poison: What is done to which share of them.
    """

    def __init__(self, pairs: Iterable[dict], poison: Poison):
        self.pairs, self.poison = pairs, poison

    def __iter__(self) -> Iterator[dict]:
        for row in self.pairs:
            drawn = keyed_generator("poison", self.poison.seed, row["sample_id"]).random()
            if drawn < self.poison.poison_rate and self.poison.target_of(row["caption"]) is not None:
                yield self.poison.apply(row)
            elif 1 - drawn < self.poison.text_only_rate:
                yield self.poison.apply_text_only(row)
            else:
                yield {"is_poisoned": False} | row
