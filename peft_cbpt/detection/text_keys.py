"""Backdoors with a key in the text too (TrojVQA's "remember "): names with a word before them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
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
class KeyReading:
    """A search beside names with a word before them."""

    word: str
    reading: Reading
    false_alarm_rate: float


def read_after_words(
    searches: Sequence[Search],
    vocabulary: Vocabulary,
    words: Sequence[str],
    prompts_after: Callable[[str, Sequence[str]], Tensor],
    word_features: Tensor,
    scale: float,
    generator: np.random.Generator,
) -> list[KeyReading]:
    """The searches that move images furthest, read after the words that lie nearest to where they move them.

    Args:
        searches: All searches.
        vocabulary: The user's names and decoys.
        words: Candidates for a key, over the whole vocabulary of the tokenizer.
        prompts_after: From a word and names to unit-norm features (n, D) of the names' prompts after that word.
        word_features: Unit-norm features (n_words, D) of the words by themselves.
        scale: Of `reading.clean_scale`.
        generator: Draws the controls.

    Returns:
        A reading for every search and word, the surest first; of the null only what random words give.
    """
    names = vocabulary.names[:NAMES]
    related = replace(vocabulary, names=names, features=vocabulary.features[:NAMES]).related()
    furthest = sorted(searches, key=lambda one: one.shift.norm().item(), reverse=True)
    chosen = list({one.family: one for one in reversed(furthest)}.values())[-READ_SEARCHES:]
    nearest = [(word_features @ one.shift).topk(min(KEYS, len(words))).indices.tolist() for one in chosen]
    controls = generator.permutation(len(words))[:CONTROLS].tolist()
    features = {word: prompts_after(words[word], names) for word in {*sum(nearest, []), *controls}}

    def read(search: Search, word: int) -> Reading:
        with torch.no_grad():
            return read_search(search, features[word], related, scale)

    others = [read(search, word) for search in chosen for word in controls]
    null = null_of(others)
    tried = len(chosen) * KEYS
    read_out = [
        KeyReading(words[word], one, null.false_alarm_rate(one.strength, tried) if one.reach >= MOVED else 1.0)
        for search, near in zip(chosen, nearest, strict=True)
        for word in near
        for one in [read(search, word)]
    ]
    return sorted(read_out, key=lambda one: one.false_alarm_rate)
