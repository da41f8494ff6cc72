"""The clean images as the frozen encoder sees them, encoded once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import tqdm
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.clip.processes import from_all_processes, own_share
from peft_cbpt.purification.feature_store import FeatureStore

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
    own = own_share(keys)
    batches = own[store.missing(own)].split(batch_size)
    for batch in tqdm(batches, desc="feature bank", unit="batch", leave=False, disable=not len(batches[0])):
        if len(batch):
            store.add(batch, encode_image(load_pixels(batch[:, 0].tolist()).to(device)))
    features = torch.cat(from_all_processes(store.look_up(own)))
    return FeatureBank(features.to(device), labels.to(device), sample_ids)
