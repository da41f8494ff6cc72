"""What a purified image encoder f' is asked for, beside the frozen original f (features are unit-norm)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def moved(features: Tensor, originals: Tensor) -> Tensor:
    """Mean `1 - cos(f'(v), f(v))` of features (B, D): a number in [0, 2]."""
    return 1 - (features * originals).sum(1).mean()


def strayed(features: Tensor, originals: Tensor, bank: Tensor, own: Tensor, scale: float) -> Tensor:
    """How far images have left their neighbours: KL(p(f(v)) || p(f'(v))), with p(x) = softmax(scale * x . bank).

    Nothing more is asked for once the images of the bank are as near as they were, so that an image that a strong
    trigger half hides does not pull at the encoder for ever, as `moved` does.

    Args:
        features: f' of the images with a trigger, (B, D).
        originals: f of the same images without it, (B, D).
        bank: f of clean images (N, D).
        own: Boolean (B, N), where the bank's image is the image itself; it is left out.
        scale: Of the cosines.
    """

    def neighbours(of: Tensor) -> Tensor:
        return (scale * of @ bank.T).masked_fill(own, torch.finfo(torch.float32).min / 2).log_softmax(1)

    return F.kl_div(neighbours(features), neighbours(originals), log_target=True, reduction="batchmean")
