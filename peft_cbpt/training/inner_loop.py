"""From the trainer's settings to the dummy triggers of its inner loop."""

import hashlib
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_cbpt.detection.target_search import FrozenText, find_suspects, search_constants, search_for_collapse
from peft_cbpt.detection.universal import CONSTANTS
from peft_cbpt.training.cbpt_arguments import DTYPES, CBPTTrainingArguments
from peft_cbpt.training.dummy_triggers import DummyTriggers
from peft_cbpt.training.frozen_images import FrozenImages
from peft_cbpt.training.runner_up import RunnerUpTriggers
from peft_cbpt.training.universal_features import TRIGGER_BUDGETS, UniversalFeatures, find_universal_triggers
from peft_cbpt.training.universal_triggers import UniversalTriggers


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
    ids = model.class_prompt_ids()
    first, last = ids[0, 0], ids[0, -1]
    config = model.get_base_model().config.text_config
    words = torch.arange(config.vocab_size, device=ids.device)
    words = words[(words != first) & (words != last)]
    if max(model.class_prompt_lengths()) == config.max_position_embeddings:
        words = words[:0]

    def encode_words(words: Tensor) -> Tensor:
        rows = torch.stack([first.expand_as(words), words, last.expand_as(words)], 1)
        features = model.get_base_model().get_text_features(input_ids=rows, return_dict=True).pooler_output
        return F.normalize(features.float(), dim=1)

    return FrozenText(
        model.encode_class_prompts().float(),
        words,
        encode_words,
        lambda word: model.encode_class_prompts(prefix_ids=[word]).float(),
    )
