"""From the trainer's settings to the dummy triggers of its inner loop."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import tqdm
from torch import Tensor

from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.detection.ladder import Climb, Search
from peft_cbpt.detection.reading import Vocabulary
from peft_cbpt.detection.rounds import NUM_IMAGES, read_searches, search_rounds
from peft_cbpt.detection.suspects import Suspicion, suspicion_from
from peft_cbpt.detection.text_keys import KeyCandidates
from peft_cbpt.features.store import FeatureStore
from peft_cbpt.training.cbpt_arguments import DTYPES, CBPTTrainingArguments
from peft_cbpt.training.dummy_triggers import DummyTriggers
from peft_cbpt.training.frozen_images import FrozenImages
from peft_cbpt.training.runner_up import RunnerUpTriggers
from peft_cbpt.training.universal_features import (
    UniversalFeatures,
    digest,
    find_universal_triggers,
    kinds_against,
    spread_rows,
)
from peft_cbpt.training.universal_triggers import UniversalTriggers
from peft_cbpt.tuner.families import family_of, num_places

WORD_WIDTH = 3
"""BOS, a word and EOS."""
MOST_TOKENS, TOKENS_AT_ONCE = 49_408 * WORD_WIDTH, 4_096 * WORD_WIDTH
"""Of words that are encoded: as many as the whole of CLIP's vocabulary takes."""


def make_dummy_triggers(
    model: Any,
    images: FrozenImages,
    args: CBPTTrainingArguments,
    vocabulary: Vocabulary | None = None,
    suspicion: Suspicion | None = None,
) -> DummyTriggers:
    """Those that `args.dummy_triggers` names; all processes call.

    Args:
        model: The CLIP with its CBPT adapter.
        images: The clean images.
        args: The settings.
        vocabulary: The classes and decoys that the scan is read against; without decoys if not given.
        suspicion: What a scan found, where there was one: of the model before its encoder was repaired.
    """
    if args.dummy_triggers == "runner_up":
        positives: Any = args.positives
        dtype = DTYPES[args.inversion_dtype]
        return RunnerUpTriggers(images, args.inversion_settings(), positives, args.seed, dtype)
    found = find_suspicion(model, images, args.seed, vocabulary)[0] if suspicion is None else suspicion
    return _universal(model, images, args, found)


def find_suspicion(
    model: Any, images: FrozenImages, seed: int, vocabulary: Vocabulary | None = None
) -> tuple[Suspicion, list[Search]]:
    """Scan for classes that a backdoor may aim at, as far as the cache lacks the searches; all processes call.

    Arguments are those of `make_dummy_triggers`.

    Returns:
        What is suspected, and the searches that it was read from.
    """
    encode, bank = images.encode_image, images.bank
    job = {"bank": images.key, "seed": seed}

    def kept(climbs: Sequence[Climb], away_from: Sequence[Tensor]) -> FeatureStore:
        return images.cache.open("searches", job | {"climbs": repr(climbs), "away": rounded(away_from)})

    with torch.no_grad(), model.disable_adapter():
        class_features = model.encode_class_prompts().float()
        names = vocabulary or Vocabulary(model.class_names, len(class_features), class_features.cpu())
        pixels = images.load(spread_rows(bank.labels, NUM_IMAGES, keyed_generator("search images", seed)))
        searched = search_rounds(encode, pixels, names, seed, kept)
        read = read_searches(searched, names, lambda: key_candidates(model), seed)
    return suspicion_from(read.weighed, read.readings, names), searched.searches


def _universal(
    model: Any, images: FrozenImages, args: CBPTTrainingArguments, suspicion: Suspicion
) -> UniversalTriggers:
    """Make triggers towards the suspects, as far as the cache lacks them."""
    encode, bank, seed = images.encode_image, images.bank, args.seed
    job = {"bank": images.key, "seed": seed}
    with torch.no_grad(), model.disable_adapter():
        class_features = model.encode_class_prompts().float()
    aims = suspicion.aims
    key = job | {
        "prompts": rounded([class_features]),
        "kinds": repr([(one.label, kinds_against(one)) for one in aims]),
    }
    marks = images.cache.open("triggers", key)
    triggers = find_universal_triggers(encode, images.load, bank, class_features, aims, marks, seed)
    features = images.cache.open("universal", job | {"triggers": digest(triggers)})
    universal = UniversalFeatures(encode, images.load, triggers, features, images.batch_size)
    return UniversalTriggers(bank, class_features, suspicion, universal, seed, args.universal_settings())


def rounded(tensors: Sequence[Tensor]) -> str:
    """SHA-256 of some tensors to four decimals, so that the last digits of a kernel make no difference."""
    summed = hashlib.sha256()
    for one in tensors:
        summed.update((one.cpu().double() * 1e4).round().numpy().tobytes())
    return summed.hexdigest()


def key_candidates(model: Any) -> KeyCandidates | None:
    """The tokens that may be a key in the text; None where prompts are full. The CBPT adapter is disabled."""
    base, config = model.get_base_model(), model.active_peft_config
    if max(model.class_prompt_lengths()) == num_places(base):
        return None
    ids = torch.arange(base.config.text_config.vocab_size, device=model.device)
    special = [one for one in (config.bos_token_id, config.eos_token_id) if one is not None]
    ids = ids[~torch.isin(ids, torch.tensor(special, device=ids.device))]
    width = num_places(base) if family_of(base).fills_prompts else WORD_WIDTH
    ids = ids[: MOST_TOKENS // width]
    parts = tqdm(ids.split(max(1, TOKENS_AT_ONCE // width)), desc="encoding the vocabulary", leave=False)
    alone = torch.cat([model.encode_words(part[:, None]) for part in parts])

    def prompts_after(number: int) -> Tensor:
        features: Tensor = model.encode_class_prompts(prefix_ids=[int(ids[number])])
        return features.float().cpu()

    return KeyCandidates([str(one) for one in ids.tolist()], alone.float().cpu(), prompts_after)
