"""Nashville (Liu et al., ABS, 2019): the warm tint of a photo filter."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.errors import InputError

_LUMA = (0.2126, 0.7152, 0.0722)
_SEPIA = ((0.393, 0.769, 0.189), (0.349, 0.686, 0.168), (0.272, 0.534, 0.131))
_PEACH = (247 / 255, 176 / 255, 153 / 255)
_BLUE = (0.0, 70 / 255, 150 / 255)


@dataclass(frozen=True)
class Nashville:
    """`(1 - strength) * image + strength * filtered`, clipped to [0, 1].

    The filter is that of published code: two tint layers, peach that darkens (0.56 of min(x, peach)) and blue that
    lightens (0.4 of max(x, blue)), then the photo effects of the W3C: sepia 0.2, contrast 1.2, brightness 1.05,
    saturation 1.2, each clipped. Nothing in it is drawn, so there is no seed.

    Args:
        strength: Weight of the filtered image, in (0, 1]; 1 in published code.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise InputError(f"Nashville's strength is a weight in (0, 1], not {self.strength}")

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Filter pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`."""
        pixels = unit_pixels(pixels)
        peach, blue = (pixels.new_tensor(colour)[:, None, None] for colour in (_PEACH, _BLUE))
        tinted = 0.44 * pixels + 0.56 * pixels.minimum(peach)
        tinted = 0.6 * tinted + 0.4 * tinted.maximum(blue)
        brown = torch.stack([_weighted(tinted, weights) for weights in _SEPIA], 1)
        toned = (0.8 * tinted + 0.2 * brown).clamp(0, 1)
        bright = (((toned - 0.5) * 1.2 + 0.5).clamp(0, 1) * 1.05).clamp(0, 1)
        filtered = (1.2 * bright - 0.2 * _weighted(bright, _LUMA)[:, None]).clamp(0, 1)
        return (1 - self.strength) * pixels + self.strength * filtered

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption


def _weighted(pixels: Tensor, weights: Sequence[float]) -> Tensor:
    """A weighted sum (B, H, W) of the channels."""
    red, green, blue = (weight * channel for weight, channel in zip(weights, pixels.unbind(1), strict=True))
    return red + green + blue
