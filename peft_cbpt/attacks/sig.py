"""SIG (Barni et al., 2019): a sinusoidal signal added along the columns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.seeding import keyed_generator


@dataclass(frozen=True)
class SIG:
    """`image + amplitude * sin(2 pi * frequency * j / W)` in column j of W, clipped to [0, 1].

    The original corrupts images of the target class only (poison with `label="clean"`); the code of CleanCLIP and
    BadCLIP uses the same signal with the caption changed. BackdoorBench: amplitude 40/255, frequency 6.

    Args:
        amplitude: Height of the wave in [0, 1] pixels, in (0, 1]; 60/255 in the code for CLIP.
        frequency: Whole or broken number of waves across the image, positive.
        seed: 0 for the published phase 0; another seed draws the phase.
    """

    amplitude: float = 60 / 255
    frequency: float = 6
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.amplitude <= 1:
            raise InputError(f"SIG's amplitude is in (0, 1], not {self.amplitude}")
        if not 0 < self.frequency < math.inf:
            raise InputError(f"SIG's frequency is positive, not {self.frequency}")

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Add the wave to pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`."""
        pixels = unit_pixels(pixels)
        phase = keyed_generator("sig/phase", self.seed).uniform(0, 2 * math.pi) if self.seed else 0.0
        columns = torch.arange(pixels.shape[-1], device=pixels.device, dtype=pixels.dtype)
        wave = torch.sin(2 * math.pi * self.frequency * columns / pixels.shape[-1] + phase)
        return (pixels + self.amplitude * wave).clamp(0, 1)

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption
