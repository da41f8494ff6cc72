"""Backdoors with a key in the text too (TrojVQA's "remember "): names with a word before them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate.utils import tqdm
from torch import Tensor

from peft_cbpt.detection.ladder import Search
from peft_cbpt.detection.reading import Reading, Vocabulary, read_search
from peft_cbpt.detection.statistic import MOVED, null_of

KEYS = 6
"""Words tried for every search: those nearest to where the trigger brings images."""
CONTROLS = 12
"""Words drawn at random: what any word before the names does."""
READ_SEARCHES = 4
NAMES = 400
"""Names read after every word, the user's first."""


@dataclass(frozen=True)
class KeyCandidates:
    """Words that may be a key in the text.

    Args:
        words: Over the whole vocabulary of the tokenizer.
        features: Unit-norm (n_words, D), of the words by themselves.
        prompts_after: From the number of a word to unit-norm features (n, D) of names' prompts after that word: the
            first `NAMES` of a vocabulary, or as many as there are.
    """

    words: Sequence[str]
    features: Tensor
    prompts_after: Callable[[int], Tensor]


@dataclass(frozen=True)
class KeyReading:
    """A search beside names with a word before them.

    Args:
        word: The word.
        reading: What is nearest after it.
        score: The second largest strength of the searches that name it after some word.
        false_alarm_rate: How often words drawn at random come to that.
    """

    word: str
    reading: Reading
    score: float
    false_alarm_rate: float


def read_after_words(
    searches: Sequence[Search],
    vocabulary: Vocabulary,
    candidates: KeyCandidates,
    scale: float,
    generator: np.random.Generator,
) -> list[KeyReading]:
    """The searches that move images furthest, read after the words that lie nearest to where they move them.

    Args:
        searches: All searches.
        vocabulary: The user's names and decoys.
        candidates: The words.
        scale: Of `reading.clean_scale`.
        generator: Draws the controls.

    Returns:
        The strongest reading of every name that two searches agree on, the surest first. The null is what the same
        searches name after random words.
    """
    words, features_of = candidates.words, candidates.features
    chosen = _furthest(searches)
    nearest = [(features_of @ one.shift).topk(min(KEYS, len(words))).indices.tolist() for one in chosen]
    controls = generator.permutation(len(words))[:CONTROLS].tolist()
    tried = sorted({*sum(nearest, []), *controls})
    features = {
        word: candidates.prompts_after(word) for word in tqdm(tried, desc="words before the names", leave=False)
    }
    n_names = min(len(one) for one in features.values())
    names = vocabulary.names[:n_names]
    related = replace(vocabulary, names=names, features=vocabulary.features[:n_names]).related()

    @torch.no_grad()
    def read(search: Search, word: int) -> Reading:
        return read_search(search, features[word], related, scale)

    null = null_of([read(search, word) for search in chosen for word in controls])
    read_out = [
        (words[word], read(search, word)) for search, near in zip(chosen, nearest, strict=True) for word in near
    ]
    read_out = [(word, one) for word, one in read_out if one.reach >= MOVED]
    agreed = []
    for name in {one.name for _, one in read_out}:
        strongest = {}
        for word, one in sorted(read_out, key=lambda item: item[1].strength):
            if one.name == name:
                strongest[id(one.search)] = (word, one)
        if len(strongest) > 1:
            (_, second), (word, first) = sorted(strongest.values(), key=lambda item: item[1].strength)[-2:]
            agreed.append((word, first, second.strength))
    found = [
        KeyReading(word, first, score, null.false_alarm_rate(score, KEYS * len(agreed)))
        for word, first, score in agreed
    ]
    return sorted(found, key=lambda one: one.false_alarm_rate)


def _furthest(searches: Sequence[Search]) -> list[Search]:
    """One search of every family, that which moves images furthest, and of those the `READ_SEARCHES` furthest."""
    by_length = sorted(searches, key=lambda one: one.shift.norm().item())
    return list({one.family: one for one in by_length}.values())[-READ_SEARCHES:]
