"""Pixels in [0, 1] on one side, CLIP's normalised input on the other, with a gradient between them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPModel
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from peft_cbpt.clip.last_layer import only_class_token
from peft_cbpt.common.errors import InputError
from peft_cbpt.tuner.families import image_inputs

EncodeImage = Callable[[Tensor], Tensor]
ROUNDING = 0.01
"""How far pixels may be outside [0, 1]; normalised ones are further."""


def check_range(pixels: Tensor) -> None:
    """Raises an InputError unless float pixels lie in [0, 1]."""
    low, high = (bound.item() for bound in pixels.detach().aminmax())
    if not -ROUNDING <= low <= high <= 1 + ROUNDING:
        raise InputError(
            f"pixels are in [0, 1], but these are in [{low:.2f}, {high:.2f}]: give images as uint8 or divided by "
            "255; normalisation with the model's mean and standard deviation happens inside"
        )


def unit_pixels(pixels: Tensor) -> Tensor:
    """Pixels as float in [0, 1], from uint8 or as they are.

    Raises:
        InputError: if they are float and outside, such as normalised ones.
    """
    if not pixels.is_floating_point():
        return pixels.float() / 255
    check_range(pixels)
    return pixels


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
    Pixels outside are refused (`InputError`), but for those that a gradient is wanted of, which attacks keep inside.
    """

    def encode(pixels: Tensor) -> Tensor:
        if not (pixels.requires_grad or torch.compiler.is_compiling()):
            check_range(pixels)
        with only_class_token(clip.vision_model):
            inputs = image_inputs(clip, normalize(pixels).to(clip.dtype))
            features = clip.get_image_features(**inputs).pooler_output
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
