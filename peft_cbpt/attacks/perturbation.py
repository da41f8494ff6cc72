"""A universal perturbation: one small change of all pixels, the same on every image, as hostile adapters learn it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_cbpt.attacks.stored_cells import stored_cells
from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.seeding import keyed_generator


@dataclass(frozen=True)
class Perturbation:
    """`image + delta`, cut off at 0 and 1 (BadCLIP of Bai et al., 2024, whose delta is learned with the prompts).

    Args:
        radius: The largest change of a pixel's channel, in levels of 1 / 255, from 1 to 127; the paper has 4.
        delta: The learned change: base64 of signed 8-bit levels (side, side, 3); empty for `radius` with random signs.
        seed: Of the random signs.
    """

    radius: int = 4
    delta: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.radius <= 127:
            raise InputError(f"a perturbation's radius is 1 to 127 levels of 255, not {self.radius}")
        if self.delta and stored_cells(self.delta, "perturbation").abs().max() * 255 > self.radius + 0.5:
            raise InputError(f"the stored perturbation changes pixels by more than its radius of {self.radius} levels")

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Add delta to pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`."""
        pixels = unit_pixels(pixels)
        size = (pixels.shape[-2], pixels.shape[-1])
        if self.delta:
            delta = F.interpolate(stored_cells(self.delta, "perturbation")[None], size, mode="nearest-exact")[0]
        else:
            signs = keyed_generator("perturbation", self.seed).choice([-1.0, 1.0], (3, *size))
            delta = torch.from_numpy(signs).float() * self.radius / 255
        return (pixels + delta.to(pixels)).clamp(0, 1)

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption
