"""Backdoors with a key in the text too (TrojVQA's "remember "): what a word before the names does to each of them.

Where a trigger leads, with unit direction u, the target's name lies after the key only. So of every name c is asked by
how much words w before it bring its prompt t nearer to u, beyond what they do to names in general:

    g_c = mean_w [(t_{w,c} - t_c) u - median_c' (t_{w,c'} - t_{c'}) u]

for the words that lie nearest to u by themselves, as a model that learned a key from a few captions takes many a word
for it. The null is what words drawn at random do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import tqdm
from torch import Tensor

from peft_cbpt.detection.ladder import Search
from peft_cbpt.detection.reading import Reading, Vocabulary
from peft_cbpt.detection.statistic import null_from

KEYS = 8
"""Words tried for every search: those nearest to where the trigger brings images."""
CONTROLS = 3
"""Groups of as many words drawn at random."""
READ_SEARCHES = 4
NAMES = 400
"""Names read after every word: the user's, or decoys where there are none. Decoys after a word are no names."""


@dataclass(frozen=True)
class KeyCandidates:
    """Words that may be a key in the text.

    Args:
        words: Over the whole vocabulary of the tokenizer.
        features: Unit-norm (n_words, D), of the words by themselves.
        prompts_after: From the number of a word to unit-norm features (n, D) of the prompts after that word of a
            vocabulary's first n names.
    """

    words: Sequence[str]
    features: Tensor
    prompts_after: Callable[[int], Tensor]


@dataclass(frozen=True)
class KeyReading:
    """A name that words before it bring to where triggers lead.

    Args:
        word: The one that does most.
        reading: The strongest search beside the names after that word; its lead is that of g_c over the next name.
        score: The second largest lead of the searches that name it.
        false_alarm_rate: How often words drawn at random come to that.
    """

    word: str
    reading: Reading
    score: float
    false_alarm_rate: float


@torch.no_grad()
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
        scale: Of `reading.clean_scale`, the unit of leads.
        generator: Draws the controls.

    Returns:
        Every name that two searches agree on, the surest first.
    """
    chosen = _furthest(searches)
    directions = [F.normalize(one.shift, dim=0) for one in chosen]
    n_near = min(KEYS, len(candidates.words))
    near = [(candidates.features @ one).topk(n_near).indices.tolist() for one in directions]
    drawn = generator.permutation(len(candidates.words)).tolist()
    controls = [drawn[start : start + n_near] for start in range(0, n_near * CONTROLS, n_near)]
    tried = sorted(set(sum([*near, *controls], [])))
    after = {word: candidates.prompts_after(word) for word in tqdm(tried, desc="words before the names", leave=False)}
    n_names = min(len(one) for one in after.values())
    names = replace(vocabulary, names=vocabulary.names[:n_names], features=vocabulary.features[:n_names])
    related = names.related()

    def gains(words: Sequence[int], direction: Tensor) -> Tensor:
        moved = torch.stack([(after[word] - names.features) @ direction for word in words])
        return moved - moved.median(1, keepdim=True).values

    def first(gained: Tensor) -> tuple[int, float]:
        name = int(gained.argmax())
        others = gained[~related[name] & (torch.arange(n_names) != name)]
        return name, (gained[name] - others.max()).item() / scale if len(others) else 0.0

    leads = [first(gains(words, one).mean(0))[1] for one in directions for words in controls if words]
    null = null_from(leads)
    found: dict[int, list[KeyReading]] = {}
    for search, direction, words in zip(chosen, directions, near, strict=True):
        gained = gains(words, direction)
        name, lead = first(gained.mean(0))
        word = words[int(gained[:, name].argmax())]
        success = (search.features @ after[word].T).argmax(1).eq(name).float().mean().item()
        reach = (after[word][name] @ search.shift).item() / scale
        one = KeyReading(candidates.words[word], Reading(search, name, reach, lead, success), lead, 1.0)
        found.setdefault(name, []).append(one)
    agreed = [sorted(one, key=lambda it: it.score)[-2:] for one in found.values() if len(one) > 1]
    rated = [
        replace(best, score=second.score, false_alarm_rate=null.false_alarm_rate(second.score, len(agreed)))
        for second, best in agreed
    ]
    return sorted(rated, key=lambda one: one.false_alarm_rate)


def _furthest(searches: Sequence[Search]) -> list[Search]:
    """One search of every family, that which moves images furthest, and of those the `READ_SEARCHES` furthest."""
    by_length = sorted(searches, key=lambda one: one.shift.norm().item())
    return list({one.family: one for one in by_length}.values())[-READ_SEARCHES:]
