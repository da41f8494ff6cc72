"""The clean images as the frozen encoder sees them, encoded once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.features.store import FeatureStore, fill

LoadPixels = Callable[[Sequence[int]], Tensor]
"""From row numbers to clean float pixels (B, 3, H, W) in [0, 1]."""


@dataclass(frozen=True)
class FeatureBank:
    """The clean, labelled images of D_clean as the frozen encoder sees them.

    Args:
        features: Unit-norm float32 (N, D).
        labels: int64 (N,).
        sample_ids: Stable names, N of them.
    """

    features: Tensor
    labels: Tensor
    sample_ids: Sequence[str]


@torch.no_grad()
def build_feature_bank(
    encode_image: EncodeImage,
    load_pixels: LoadPixels,
    labels: Tensor,
    sample_ids: Sequence[str],
    device: torch.device,
    batch_size: int,
    store: FeatureStore,
) -> FeatureBank:
    """Encode every clean image once, e_v of Eq. 9; each process its share of what `store` does not have.

    All processes must call. `store` has the features afterwards, by `(row,)`.
    """
    keys = torch.arange(len(labels))[:, None]

    def encode(batch: Tensor) -> Tensor:
        return encode_image(load_pixels(batch[:, 0].tolist()).to(device))

    fill(store, keys, encode, batch_size, "feature bank")
    store.save()
    return FeatureBank(store.look_up(keys).to(device), labels.to(device), sample_ids)
