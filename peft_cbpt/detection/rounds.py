"""All searches of a model: a ladder, and ladders again away from what was found, as long as something new is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.detection.ladder import AGAIN, CLIMBS, JUDGED_IMAGES, Climb, Search, search_ladder
from peft_cbpt.detection.reading import Reading, Vocabulary, clean_scale, read_all
from peft_cbpt.detection.text_keys import KeyCandidates, KeyReading, read_after_words
from peft_cbpt.detection.verdict import DOUBT, Finding, Weighed, weigh
from peft_cbpt.features.store import FeatureStore

NUM_IMAGES = 2 * JUDGED_IMAGES
MOST_ROUNDS = 1
"""Of searching again, away from what was found; each costs half as much as the first."""
WORDS = "words"
"""The kind of a finding that takes a word before the names."""


@dataclass(frozen=True)
class Searched:
    """Everything about a model that no list of names is needed for.

    Args:
        searches: All of them, those away from what was found among them.
        clean: Unit-norm features (N, D) of the clean images.
    """

    searches: list[Search]
    clean: Tensor


def search_rounds(
    encode_image: EncodeImage,
    pixels: Tensor,
    vocabulary: Vocabulary,
    seed: int,
    kept: Callable[[Sequence[Climb], Sequence[Tensor]], FeatureStore | None] = lambda climbs, away: None,
) -> Searched:
    """Search, and search again away from what was found; all processes call.

    Args:
        encode_image: From pixels in [0, 1] to unit-norm features.
        pixels: Clean images (N, 3, H, W) in [0, 1].
        vocabulary: Names that say whether something was found.
        seed: Of all searches.
        kept: From climbs, and the directions (D,) that were found already, to what earlier runs found by them away
            from these.
    """
    with torch.no_grad():
        clean = encode_image(pixels).cpu()
    scale = clean_scale(clean, vocabulary.features)
    searches: list[Search] = []
    away: list[Tensor] = []
    for _ in range(1 + MOST_ROUNDS):
        climbs = AGAIN if away else CLIMBS
        searches += search_ladder(encode_image, pixels, seed, away, climbs, kept(climbs, away))
        found = weigh(read_all(searches, vocabulary, scale), vocabulary).findings
        if len(found) <= len(away):
            break
        away = [one.best.search.shift for one in found]
    return Searched(searches, clean)


@dataclass(frozen=True)
class Read:
    """Searches beside names.

    Args:
        weighed: What was found.
        readings: Of all searches.
        keys: Of words before the names, the surest first; none where something was found without them.
    """

    weighed: Weighed
    readings: list[Reading]
    keys: list[KeyReading]


def read_searches(
    searched: Searched, vocabulary: Vocabulary, key_candidates: Callable[[], KeyCandidates | None], seed: int
) -> Read:
    """What the searches lead to; words before the names are tried where they lead to nothing.

    Args:
        searched: Of `search_rounds`.
        vocabulary: The user's names and decoys.
        key_candidates: Words that may be a key in the text; None where prompts leave no room for one.
        seed: Of the control words.
    """
    scale = clean_scale(searched.clean, vocabulary.features)
    readings = read_all(searched.searches, vocabulary, scale)
    weighed = weigh(readings, vocabulary)
    if weighed.findings or (candidates := key_candidates()) is None:
        return Read(weighed, readings, [])
    generator = keyed_generator("scan words", seed)
    keys = read_after_words(searched.searches, vocabulary, candidates, scale, generator)
    return Read(with_keys(weighed, keys, vocabulary), readings, keys)


def with_keys(weighed: Weighed, keys: Sequence[KeyReading], vocabulary: Vocabulary) -> Weighed:
    """What words before the names add, where nothing was found without them: a doubt, and never more.

    How often words accuse a clean model was not measured on enough models.
    """
    if not keys or keys[0].false_alarm_rate > DOUBT:
        return weighed
    best = keys[0]
    name = vocabulary.names[best.reading.name]
    doubt = Finding(
        name=name if best.reading.name < vocabulary.n_listed else None,
        words=[f"{best.word} ... {name}"],
        kind=WORDS,
        score=best.score,
        false_alarm_rate=best.false_alarm_rate,
        rms=best.reading.search.size,
        success_rate=best.reading.success,
        n_searches=2,
        best=best.reading,
    )
    return replace(weighed, doubts=[doubt, *weighed.doubts])
