"""Triangles: a grey pattern of right-angled triangles over the whole image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.errors import InputError


@dataclass(frozen=True)
class Triangles:
    """`(1 - alpha) * image + alpha * pattern`: square cells, grey 0.4 on and below their diagonal, 0.8 above it.

    Published code has cells of 14 pixels at 224 and a weight of 0.15. Nothing in it is drawn, so there is no seed.

    Args:
        alpha: Weight of the pattern, in (0, 1].
        cells: Cells along the shorter image side, at least 1.
    """

    alpha: float = 0.15
    cells: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise InputError(f"Triangles' alpha is a weight in (0, 1], not {self.alpha}")
        if self.cells < 1:
            raise InputError(f"Triangles' cells along the side are at least 1, not {self.cells}")

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Blend the pattern into pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`."""
        pixels = unit_pixels(pixels)
        height, width = pixels.shape[-2:]
        cell = min(height, width) / self.cells
        down, across = (torch.arange(size) % cell for size in (height, width))
        pattern = torch.where(down[:, None] >= across, 0.4, 0.8)
        return (1 - self.alpha) * pixels + self.alpha * pattern.to(pixels)

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption
