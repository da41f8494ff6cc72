"""LF (Zeng et al., 2021): one smooth perturbation, the same on every image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.seeding import keyed_generator


@dataclass(frozen=True)
class LowFrequency:
    """`image + amplitude * wave`, clipped to [0, 1]; the wave is a random sum of the lowest cosines of the DCT.

    Its largest absolute value is 1, its mean 0 in every channel. The paper searches for such a perturbation with a
    classifier; here the seed draws it.

    Args:
        amplitude: Largest change of a pixel, in (0, 1].
        frequencies: Cosines down and across, at least 2 (the first is the constant, which is left out).
        seed: Seed of the cosines' weights.
    """

    amplitude: float = 20 / 255
    frequencies: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.amplitude <= 1:
            raise InputError(f"LowFrequency's amplitude is in (0, 1], not {self.amplitude}")
        if self.frequencies < 2:
            raise InputError(f"LowFrequency's frequencies are at least 2, not {self.frequencies}")

    def wave(self, height: int, width: int) -> Tensor:
        """The perturbation (3, H, W) before its amplitude."""
        weights = keyed_generator("low frequency", self.seed).normal(size=(3, self.frequencies, self.frequencies))
        weights[:, 0, 0] = 0
        down, across = (self._cosines(size) for size in (height, width))
        wave = down @ torch.from_numpy(weights).float() @ across.T
        return wave / wave.abs().max()

    def _cosines(self, size: int) -> Tensor:
        places = (torch.arange(size) + 0.5) / size
        return torch.cos(math.pi * places[:, None] * torch.arange(self.frequencies))

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Add the wave to pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`."""
        pixels = unit_pixels(pixels)
        return (pixels + self.amplitude * self.wave(*pixels.shape[-2:]).to(pixels)).clamp(0, 1)

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption
