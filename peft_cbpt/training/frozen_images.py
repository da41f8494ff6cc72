"""The clean images of a run behind the frozen image encoder: encoded once, with what earlier runs left on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from peft_cbpt.clip.pixels import EncodeImage, PixelNormalizer, image_encoder, in_batches, prefer_channels_last
from peft_cbpt.common.cache_dir import default_cache_dir
from peft_cbpt.features.bank import FeatureBank, build_feature_bank
from peft_cbpt.features.cache import FeatureCache
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.memory import image_batch_size
from peft_cbpt.training.samples import Samples, load_pixels
from peft_cbpt.tuner.fingerprint import computation, encoder_fingerprint

FORMAT = 2
"""Raised when the same key would mean other features."""


@dataclass(frozen=True)
class FrozenImages:
    """What dummy triggers are made from.

    Args:
        encode_image: The frozen encoder; never more than `batch_size` images go through it at once.
        bank: The clean features.
        batch_size: Images encoded or inverted at once.
        cache: Where features are kept.
        key: All that the clean features depend on.
        dataset: Rows of `pixel_values`.
    """

    encode_image: EncodeImage
    bank: FeatureBank
    batch_size: int
    cache: FeatureCache
    key: dict[str, Any]
    dataset: Dataset

    def load(self, rows: Sequence[int]) -> Tensor:
        """Float pixels (B, 3, H, W) in [0, 1] of bank rows, on the bank's device."""
        return load_pixels(self.dataset, rows).to(self.bank.features.device)


def open_cache(args: CBPTTrainingArguments) -> FeatureCache:
    """The feature cache that the settings name.

    Raises:
        InputError: if it cannot be written to.
    """
    folder = Path(args.feature_cache_dir or default_cache_dir()).expanduser() if args.use_feature_cache else None
    return FeatureCache(folder, int(args.feature_cache_gb * 1e9))


def bank_key(base: Any, samples: Samples, normalize: PixelNormalizer, device: str) -> dict[str, Any]:
    """All that clean features depend on: the base model, images in their order, preprocessing, kind of device."""
    tower = {"computation": computation(base.config.vision_config), "dtype": str(base.dtype)}
    return {
        "format": FORMAT,
        "base": {"weights": encoder_fingerprint(base), **tower},
        "samples": samples.digest,
        "normalize": {"mean": list(normalize.mean), "std": list(normalize.std)},
        "device": device,
    }


def freeze_images(
    base: Any,
    dataset: Dataset,
    samples: Samples,
    normalize: PixelNormalizer,
    args: CBPTTrainingArguments,
    cache: FeatureCache,
    key: dict[str, Any],
) -> FrozenImages:
    """Encode those clean images that the cache lacks; all processes call."""
    prefer_channels_last(base.vision_model)
    encoder = image_encoder(base, normalize)
    image = load_pixels(dataset, [0]).to(args.device)
    batch_size = image_batch_size(encoder, image, base, args.inversion_batch_size, args.activation_memory_gb)
    encode = in_batches(torch.compile(encoder) if args.compile_image_encoder else encoder, batch_size)

    def load(rows: Sequence[int]) -> Tensor:
        return load_pixels(dataset, rows)

    labels, store = torch.tensor(samples.labels), cache.open("features", key)
    bank = build_feature_bank(encode, load, labels, samples.ids, args.device, batch_size, store)
    return FrozenImages(encode, bank, batch_size, cache, key, dataset)
