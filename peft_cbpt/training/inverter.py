"""From the trainer's settings to the feature bank and the inner loop, with what earlier runs left on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from peft_cbpt.clip.pixels import PixelNormalizer, image_encoder, prefer_channels_last
from peft_cbpt.detection.target_search import FrozenText, find_suspects, search_for_collapse
from peft_cbpt.features.bank import build_feature_bank
from peft_cbpt.features.disk_cache import DiskCache, default_cache_dir
from peft_cbpt.features.store import FeatureStore
from peft_cbpt.training.cbpt_arguments import DTYPES, CBPTTrainingArguments
from peft_cbpt.training.checkpoints import bank_key, inversion_key, search_key, universal_key
from peft_cbpt.training.dummy_triggers import DummyTriggers
from peft_cbpt.training.memory import image_batch_size
from peft_cbpt.training.samples import Samples
from peft_cbpt.training.trigger_inverter import TriggerInverter
from peft_cbpt.training.universal_features import UniversalFeatures, universal_triggers


@dataclass(frozen=True)
class ImagesToInvert:
    """The clean images of a run.

    Args:
        dataset: Rows of `pixel_values`.
        samples: What was seen of them.
        normalize: The base model's preprocessing.
    """

    dataset: Dataset
    samples: Samples
    normalize: PixelNormalizer

    def load(self, rows: Sequence[int]) -> Tensor:
        """Float pixels (B, 3, H, W) in [0, 1]."""
        pixels = torch.stack([self.dataset[row]["pixel_values"] for row in rows])
        return pixels if pixels.is_floating_point() else pixels.float() / 255


def cache_keys(
    base: nn.Module, images: ImagesToInvert, args: CBPTTrainingArguments
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What clean and perturbed features depend on."""
    bank = bank_key(base, images.samples, images.normalize, args.device.type)
    settings = args.inversion_settings()
    return bank, inversion_key(bank, settings, args.positives, args.seed, args.inversion_dtype)


def open_cache(args: CBPTTrainingArguments) -> DiskCache | None:
    """The disk cache that the settings name.

    Raises:
        InputError: if it cannot be written to.
    """
    folder = Path(args.cache_dir or default_cache_dir()).expanduser()
    return DiskCache(folder, int(args.cache_size_gb * 1e9)) if args.use_cache else None


def make_inverter(
    base: Any,
    images: ImagesToInvert,
    args: CBPTTrainingArguments,
    cache: DiskCache | None,
    bank_of: dict[str, Any],
    inversion_of: dict[str, Any],
) -> TriggerInverter:
    """Encode the clean images that the disk cache lacks and open the perturbed features it has; all processes call."""
    clean, perturbed = FeatureStore(), None
    if cache is not None:
        clean = FeatureStore(cache.open("features", bank_of))
        if args.target == "runner_up":
            perturbed = FeatureStore(cache.open("perturbed", inversion_of))
    prefer_channels_last(base.vision_model)
    encode_image = image_encoder(base, images.normalize)
    batch_size = args.inversion_batch_size or image_batch_size(encode_image, images.load([0]).to(args.device), base)
    encode = torch.compile(encode_image) if args.compile_image_encoder else encode_image
    labels = torch.tensor(images.samples.labels)
    bank = build_feature_bank(encode, images.load, labels, images.samples.ids, args.device, batch_size, clean)
    return TriggerInverter(
        encode,
        images.load,
        bank,
        args.inversion_settings(),
        args.positives,  # type: ignore[arg-type]
        batch_size,
        args.seed,
        DTYPES[args.inversion_dtype],
        perturbed,
    )


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


def make_dummy_triggers(
    inverter: TriggerInverter,
    model: Any,
    images: ImagesToInvert,
    args: CBPTTrainingArguments,
    cache: DiskCache | None,
    bank_of: dict[str, Any],
) -> DummyTriggers:
    """Look for suspected targets and make their universal triggers, as far as the disk cache lacks them; all call."""

    def opened(kind: str, key: dict[str, Any]) -> FeatureStore:
        return FeatureStore(cache.open(kind, key) if cache else None)

    encode, bank, seed, settings = inverter.encode_image, inverter.bank, args.seed, args.dummy_trigger_settings()
    with torch.no_grad(), model.disable_adapter():
        text = frozen_text(model)
        searches = opened("searches", search_key(bank_of, seed))
        search = partial(search_for_collapse, encode, images.load, bank, seed, searches)
        suspicion = find_suspects(search, bank, text, seed, settings.evidence)
    class_features = text.class_features
    key = universal_key(bank_of, class_features, seed)
    kept = opened("triggers", key)
    triggers = universal_triggers(encode, images.load, bank, class_features, suspicion.suspects, kept, seed)
    universal = UniversalFeatures(encode, images.load, triggers, opened("universal", key), inverter.batch_size)
    return DummyTriggers(bank, class_features, suspicion, universal, seed, settings)
