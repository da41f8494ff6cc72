"""The search for what a backdoor may aim at, in the frozen model and the clean images."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import tqdm
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.common.processes import from_all_processes, own_share
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.detection.suspects import (
    EVIDENCE,
    CleanCosines,
    Evidence,
    Suspicion,
    clean_cosines,
    collapsed_names,
    reach,
    suspicion,
)
from peft_cbpt.detection.universal import CONSTANTS, Budget, collapse, universal_trigger
from peft_cbpt.features.bank import FeatureBank, LoadPixels
from peft_cbpt.features.plan import Passes
from peft_cbpt.features.store import FeatureStore, fill

SEARCH_IMAGES = 32
WORDS_BUDGET = Budget(0.072)
"""Words are tried on what searches with this budget found."""
SEARCH_BUDGETS = (Budget(0.036), WORDS_BUDGET)
PATTERN_BUDGETS = (Budget(0.166, pattern=True),)
PATIENT_BUDGETS = (Budget(0.036, steps=40), Budget(0.05, steps=40))
"""For where nothing was found."""
ALL_BUDGETS = (*SEARCH_BUDGETS, *PATTERN_BUDGETS, *PATIENT_BUDGETS)
SEARCHES = 3
"""With each budget, from other starts and on other images: one search may end in another optimum. Budgets of one size
share starts and images."""
WORDS = 8
"""For each search, how many words are put before the names; all of the vocabulary are tried alone."""
WORDS_AT_ONCE = 4096

Searches = dict[Budget, list[Tensor]]
"""Of every budget what its searches found: features (B, D) of images under one trigger each."""


@dataclass(frozen=True)
class FrozenText:
    """The frozen text tower, as far as the search needs it.

    Args:
        class_features: Of the undefended prompts, unit-norm (n_classes, D).
        words: Token ids that may precede a prompt, (n_words,); none where prompts leave no room.
        encode_words: From ids (n,) to unit-norm features (n, D) of each word alone.
        encode_prompts: From one id to features (n_classes, D) of the undefended prompts with that word before them.
    """

    class_features: Tensor
    words: Tensor
    encode_words: Callable[[Tensor], Tensor]
    encode_prompts: Callable[[int], Tensor]


def search_rows(labels: Tensor, generator: np.random.Generator) -> list[int]:
    """The bank rows of up to `SEARCH_IMAGES` images, of as many classes as can be."""
    order = generator.permutation(len(labels))
    chosen: list[int] = []
    while len(chosen) < min(SEARCH_IMAGES, len(labels)):
        seen: set[int] = set()
        for row in order.tolist():
            label = int(labels[row])
            if row not in chosen and label not in seen and len(chosen) < SEARCH_IMAGES:
                seen.add(label)
                chosen.append(row)
    return chosen


@torch.no_grad()
def reach_after_words(searches: list[Tensor], text: FrozenText, clean: CleanCosines) -> list[Tensor]:
    """`reach` of every name with the word before it that brings it nearest to the images of a search (n_classes,).

    A trigger of two keys shows its target only when the text has its key too, and a model that learned such a key from
    a few hundred captions takes many a word for it. Tried are the words that are nearest to the images by themselves.
    All processes must call.

    Args:
        searches: Unit-norm features (B, D) of the images of every search.
        text: The frozen text tower.
        clean: Of the clean images.
    """
    ids = text.words
    parts = tqdm(ids.split(WORDS_AT_ONCE), desc="encoding the vocabulary", leave=False)
    alone = torch.cat([text.encode_words(part) for part in parts])
    nearest = [ids[(alone @ features.mean(0)).topk(min(WORDS, len(ids))).indices].tolist() for features in searches]
    nearest = from_all_processes(nearest)[0]  # two processes may see a tie otherwise
    tried = sorted({word for words in nearest for word in words})
    own = own_share(torch.tensor(tried)).tolist()
    encoded = {
        word: text.encode_prompts(word).cpu() for word in tqdm(own, desc="looking for a key in the text", leave=False)
    }
    prompts = {word: one.to(ids.device) for share in from_all_processes(encoded) for word, one in share.items()}
    return [
        torch.stack([reach(features, prompts[word], clean) for word in words]).amax(0)
        for features, words in zip(searches, nearest, strict=True)
    ]


def collapsed_features(
    encode_image: EncodeImage,
    load_pixels: LoadPixels,
    bank: FeatureBank,
    budget: Budget,
    generator: np.random.Generator,
) -> Tensor:
    """Features (B, D) of a few images under a universal trigger that makes them alike."""
    pixels = load_pixels(search_rows(bank.labels, generator)).to(bank.features.device)
    start = torch.from_numpy(generator.standard_normal(pixels.shape[1:])).float()
    delta = universal_trigger(encode_image, pixels, collapse, budget, start)
    with torch.no_grad():
        return encode_image((pixels + delta).clamp(0, 1))


def search_for_collapse(
    encode_image: EncodeImage,
    load_pixels: LoadPixels,
    bank: FeatureBank,
    seed: int,
    store: FeatureStore,
    budgets: Sequence[Budget],
) -> Searches:
    """`collapsed_features` of `SEARCHES` searches with each budget, of `ALL_BUDGETS`.

    Each process does its share of those that `store` lacks; all call. They are kept flat, by (number of the budget,
    number of the search).
    """

    def search(key: Tensor) -> Tensor:
        budget, number = ALL_BUDGETS[int(key[0, 0])], int(key[0, 1])
        generator = keyed_generator("collapse", seed, budget.rms, number)
        return collapsed_features(encode_image, load_pixels, bank, budget, generator).flatten()[None]

    keys = torch.tensor([(ALL_BUDGETS.index(budget), number) for budget in budgets for number in range(SEARCHES)])
    fill(store, keys, search, 1, "looking for the target")
    store.save()
    n_images = min(SEARCH_IMAGES, len(bank.labels))
    found = store.look_up(keys).unflatten(1, (n_images, -1)).to(bank.features)
    return dict(zip(budgets, map(list, found.split(SEARCHES)), strict=True))


def search_passes(n_images: int) -> Passes:
    """Of all budgets, the patient ones too, on `search_rows` of so many clean images."""
    at_once = SEARCHES * min(SEARCH_IMAGES, n_images)
    return Passes(len(ALL_BUDGETS) * at_once, sum(budget.steps for budget in ALL_BUDGETS) * at_once)


def search_constants() -> dict[str, Any]:
    """All that searches depend on beside the model, the images and the seed."""
    budgets = [asdict(budget) for budget in ALL_BUDGETS]
    return {"searches": SEARCHES, "images": SEARCH_IMAGES, "budgets": budgets, **CONSTANTS}


def find_suspects(
    search: Callable[[Sequence[Budget]], Searches],
    bank: FeatureBank,
    text: FrozenText,
    evidence: Collection[Evidence] = EVIDENCE,
) -> Suspicion:
    """The classes that a backdoor may aim at; all processes must call.

    Args:
        search: `search_for_collapse`, given all but the budgets.
        bank: The clean images.
        text: The frozen text tower.
        evidence: The kinds that count.
    """
    clean = clean_cosines(bank.features, bank.labels, text.class_features)

    def reached(found: Searches) -> list[Tensor]:
        return [reach(features, text.class_features, clean) for one in found.values() for features in one]

    collapsed = search((*SEARCH_BUDGETS, *PATTERN_BUDGETS))
    searches = reached({budget: collapsed[budget] for budget in SEARCH_BUDGETS}) if "collapse" in evidence else []
    patterns = reached({budget: collapsed[budget] for budget in PATTERN_BUDGETS}) if "pattern" in evidence else []

    def nothing_found() -> bool:
        return any(from_all_processes(not collapsed_names(searches, patterns)))

    if "collapse" in evidence and nothing_found():
        searches += reached(search(PATIENT_BUDGETS))
    after_words: list[Tensor] = []
    if "words" in evidence and len(text.words) and nothing_found():
        after_words = reach_after_words(collapsed[WORDS_BUDGET], text, clean)
    return from_all_processes(suspicion(clean, searches, patterns, after_words))[0]
