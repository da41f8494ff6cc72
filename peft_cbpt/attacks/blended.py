"""Blended (Chen et al., 2017): a picture of noise mixed into the whole image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.seeding import keyed_generator


@dataclass(frozen=True)
class Blended:
    """`(1 - alpha) * image + alpha * noise`, noise uniform in [0, 1] and as large as the image.

    Published variants differ: the code of CleanCLIP and BadCLIP blends 0.2 of noise and draws it anew for every image
    (`noise="per_sample"`); BackdoorBench blends 0.1 to 0.2 of one fixed picture, as the default here does with one
    fixed noise. The noise is drawn on 224 x 224 cells and read at the nearest cell at other sizes.

    Args:
        alpha: Weight of the noise, in (0, 1].
        noise: `fixed`, the same on every image, or `per_sample`.
        cells: Cells of the noise per side, at least 1; 224 is one for every pixel of published code.
        seed: Seed of the noise.
    """

    alpha: float = 0.2
    noise: Literal["fixed", "per_sample"] = "fixed"
    cells: int = 224
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise InputError(f"Blended's alpha is a weight in (0, 1], not {self.alpha}")
        if self.noise not in ("fixed", "per_sample"):
            raise InputError(f"Blended's noise is fixed or per_sample, not {self.noise!r}")
        if self.cells < 1:
            raise InputError(f"Blended's cells per side are at least 1, not {self.cells}")

    def _pattern(self, size: tuple[int, int], *sample_id: str) -> Tensor:
        noise = keyed_generator("blended/noise", self.seed, *sample_id).random((1, 3, self.cells, self.cells))
        return F.interpolate(torch.from_numpy(noise).float(), size, mode="nearest-exact")

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Blend the noise into pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`."""
        pixels = unit_pixels(pixels)
        size = (pixels.shape[-2], pixels.shape[-1])
        if self.noise == "fixed":
            pattern = self._pattern(size)
        else:
            pattern = torch.cat([self._pattern(size, sample_id) for sample_id in sample_ids])
        return (1 - self.alpha) * pixels + self.alpha * pattern.to(pixels)

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption
