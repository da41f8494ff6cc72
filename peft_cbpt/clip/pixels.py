"""Pixels in [0, 1] on one side, CLIP's normalised input on the other, with a gradient between them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPModel
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from peft_cbpt.tuner.last_layer import only_pooled_tokens

EncodeImage = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PixelNormalizer:
    """Per-channel `(pixels - mean) / std`, differentiable; mean and std in [0, 1] units."""

    mean: tuple[float, ...] = tuple(OPENAI_CLIP_MEAN)
    std: tuple[float, ...] = tuple(OPENAI_CLIP_STD)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise (B, 3, H, W) float pixels in [0, 1]."""
        mean = torch.tensor(self.mean, dtype=pixels.dtype, device=pixels.device)[:, None, None]
        std = torch.tensor(self.std, dtype=pixels.dtype, device=pixels.device)[:, None, None]
        return (pixels - mean) / std


def prefer_channels_last(vision_model: nn.Module) -> None:
    """Lay out the weights of a convolutional tower channels last, which convolutions then keep to; values stay."""
    convolutions = sum(isinstance(module, nn.Conv2d) for module in vision_model.modules())
    if convolutions > 1:  # a ViT has one, its patch embedding
        vision_model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def image_encoder(clip: CLIPModel, normalize: PixelNormalizer) -> EncodeImage:
    """`encode_image(pixels) -> features`: the frozen f_v of Eq. 1 on pixels in [0, 1].

    Takes (B, 3, H, W) floats in [0, 1]; returns unit-norm float32 features (B, D), with a gradient to the pixels.
    """

    def encode(pixels: Tensor) -> Tensor:
        with only_pooled_tokens(clip.vision_model):
            features = clip.get_image_features(pixel_values=normalize(pixels).to(clip.dtype)).pooler_output
        return torch.nn.functional.normalize(features.float(), dim=-1)

    return encode


def in_batches(encode_image: EncodeImage, batch_size: int) -> EncodeImage:
    """The same function, which never has the activations of more than `batch_size` images at once."""

    def encode(pixels: Tensor) -> Tensor:
        if len(pixels) <= batch_size:
            return encode_image(pixels)
        if not (torch.is_grad_enabled() and pixels.requires_grad):
            return torch.cat([encode_image(part) for part in pixels.split(batch_size)])
        parts = [checkpoint(encode_image, part, use_reentrant=False) for part in pixels.split(batch_size)]
        return torch.cat(parts)

    return encode
