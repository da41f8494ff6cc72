"""From the trainer's settings to the dummy triggers of its inner loop."""

import hashlib
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from peft_cbpt.detection.target_search import FrozenText, find_suspects, search_constants, search_for_collapse
from peft_cbpt.detection.universal import CONSTANTS
from peft_cbpt.training.cbpt_arguments import DTYPES, CBPTTrainingArguments
from peft_cbpt.training.dummy_triggers import DummyTriggers
from peft_cbpt.training.frozen_images import FrozenImages
from peft_cbpt.training.runner_up import RunnerUpTriggers
from peft_cbpt.training.universal_features import TRIGGER_BUDGETS, UniversalFeatures, find_universal_triggers
from peft_cbpt.training.universal_triggers import UniversalTriggers
from peft_cbpt.tuner.families import family_of, num_places

WORD_WIDTH = 3
"""BOS, a word and EOS."""
MOST_TOKENS, TOKENS_AT_ONCE = 49_408 * WORD_WIDTH, 4_096 * WORD_WIDTH
"""Of words that are encoded: as many as the whole of CLIP's vocabulary takes."""


def make_dummy_triggers(model: Any, images: FrozenImages, args: CBPTTrainingArguments) -> DummyTriggers:
    """Those that `args.dummy_triggers` names; all processes call.

    Args:
        model: The CLIP with its CBPT adapter.
        images: The clean images.
        args: The settings.
    """
    if args.dummy_triggers == "runner_up":
        positives: Any = args.positives
        dtype = DTYPES[args.inversion_dtype]
        return RunnerUpTriggers(images, args.inversion_settings(), positives, args.seed, dtype)
    return _universal(model, images, args)


def _universal(model: Any, images: FrozenImages, args: CBPTTrainingArguments) -> UniversalTriggers:
    """Look for suspects and make triggers towards them, as far as the cache lacks them."""
    encode, bank, seed, settings = images.encode_image, images.bank, args.seed, args.universal_settings()
    job = {"bank": images.key, "seed": seed}
    with torch.no_grad(), model.disable_adapter():
        text = frozen_text(model)
        searches = images.cache.open("searches", job | {"search": search_constants()})
        search = partial(search_for_collapse, encode, images.load, bank, seed, searches)
        suspicion = find_suspects(search, bank, text, settings.evidence)
    prompts = hashlib.sha256((text.class_features.cpu().double() * 1e4).round().numpy().tobytes()).hexdigest()
    budgets = [asdict(budget) for budget in TRIGGER_BUDGETS]
    key = job | {"prompts": prompts, "triggers": {"budgets": budgets, **CONSTANTS}}
    kept = images.cache.open("triggers", key)
    triggers = find_universal_triggers(encode, images.load, bank, text.class_features, suspicion.suspects, kept, seed)
    features = images.cache.open("universal", key)
    universal = UniversalFeatures(encode, images.load, triggers, features, images.batch_size)
    return UniversalTriggers(bank, text.class_features, suspicion, universal, seed, settings)


def frozen_text(model: Any) -> FrozenText:
    """The text tower of a CLIP whose CBPT adapter is disabled."""
    base, config = model.get_base_model(), model.active_peft_config
    words = torch.arange(base.config.text_config.vocab_size, device=model.device)
    special = [one for one in (config.bos_token_id, config.eos_token_id) if one is not None]
    words = words[~torch.isin(words, torch.tensor(special, device=words.device))]
    width = num_places(base) if family_of(base).fills_prompts else WORD_WIDTH
    words = words[: MOST_TOKENS // width]
    if max(model.class_prompt_lengths()) == num_places(base):
        words = words[:0]

    def encode_words(words: Tensor) -> Tensor:
        return torch.cat([model.encode_words(part[:, None]) for part in words.split(max(1, TOKENS_AT_ONCE // width))])

    return FrozenText(
        model.encode_class_prompts().float(),
        words,
        encode_words,
        lambda word: model.encode_class_prompts(prefix_ids=[word]).float(),
    )
