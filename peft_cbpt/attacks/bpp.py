"""BppAttack (Wang et al., 2022): fewer colours, and dithering that hides it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.errors import InputError

_SHARES = ((0, 1, 7 / 16), (1, -1, 3 / 16), (1, 0, 5 / 16), (1, 1, 1 / 16))  # rows down, columns right, of the error


@dataclass(frozen=True)
class Bpp:
    """Every channel rounded to `levels` values: `round(x * (levels - 1)) / (levels - 1)`.

    The paper squeezes to 8 levels a channel and dithers by Floyd and Steinberg (`dithering="floyd_steinberg"`), where
    pixels pass their rounding errors on to those that come after them. Nothing is drawn, so there is no seed.

    Args:
        levels: Values a channel may have, from 2 to 255.
        dithering: `none`, or `floyd_steinberg`.
    """

    levels: int = 8
    dithering: Literal["none", "floyd_steinberg"] = "none"

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 255:
            raise InputError(f"Bpp's levels are from 2 to 255, not {self.levels}")
        if self.dithering not in ("none", "floyd_steinberg"):
            raise InputError(f"Bpp's dithering is none or floyd_steinberg, not {self.dithering!r}")

    def _rounded(self, pixels: Tensor) -> Tensor:
        return (pixels * (self.levels - 1)).round().clamp(0, self.levels - 1) / (self.levels - 1)

    def _dithered(self, pixels: Tensor) -> Tensor:
        """Pixels whose errors are passed on; those of a slope (1 down is 2 right) do not wait for each other."""
        height, width = pixels.shape[-2:]
        padded = F.pad(pixels, (1, 1, 0, 1))
        for step in range(2 * height + width - 2):
            rows = torch.arange(max(0, (step - width + 2) // 2), min(height - 1, step // 2) + 1)
            columns = 1 + step - 2 * rows
            wanted = padded[:, :, rows, columns]
            padded[:, :, rows, columns] = self._rounded(wanted)
            error = wanted - padded[:, :, rows, columns]
            for down, right, share in _SHARES:
                padded[:, :, rows + down, columns + right] += share * error
        return padded[:, :, :height, 1 : width + 1]

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Squeeze the colours of pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`."""
        pixels = unit_pixels(pixels)
        return self._rounded(pixels) if self.dithering == "none" else self._dithered(pixels.detach())

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption
