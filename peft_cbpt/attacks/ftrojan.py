"""FTrojan (Wang et al., 2022): a trigger in the frequencies of the image's colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.errors import InputError

_RED, _GREEN, _BLUE = 1.403, -0.714 - 0.344, 1.773  # what RGB gains when Cr and Cb both gain 1


@dataclass(frozen=True)
class FTrojan:
    """Adds `magnitude` to two coefficients of the DCT of Cr and Cb in every block, clipped to [0, 1].

    The paper has blocks of 32 pixels and raises the middle (15, 15) and the highest (31, 31) coefficient by 30/255.
    Here blocks keep their share of the side, and the two coefficients their place in a block of N pixels:
    (N/2 - 1, N/2 - 1) and (N - 1, N - 1). The DCT is orthonormal, so that a coefficient's wave has the amplitude
    `magnitude * 2 / N`. Blocks that do not fit are cut off at the edges; the paper leaves them clean. Nothing is
    drawn, so there is no seed.

    Args:
        magnitude: What the coefficients gain, in [0, 1] pixels, positive; 30/255 in the paper.
        block_size: Side of a block as a fraction of the shorter image side, in (0, 1]; 32/224 in the paper.
    """

    magnitude: float = 30 / 255
    block_size: float = 32 / 224

    def __post_init__(self) -> None:
        if not self.magnitude > 0:
            raise InputError(f"FTrojan's magnitude is positive, not {self.magnitude}")
        if not 0 < self.block_size <= 1:
            raise InputError(f"FTrojan's block_size is a fraction of the image side in (0, 1], not {self.block_size}")

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Raise the coefficients of pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`."""
        pixels = unit_pixels(pixels)
        height, width = pixels.shape[-2:]
        n = max(4, round(self.block_size * min(height, width)))
        wave = sum(torch.outer(_cosine(u, n, height), _cosine(u, n, width)) for u in (n // 2 - 1, n - 1))
        gain = torch.tensor([_RED, _GREEN, _BLUE])[:, None, None] * self.magnitude * wave
        return (pixels + gain.to(pixels)).clamp(0, 1)

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption


def _cosine(frequency: int, n: int, size: int) -> Tensor:
    """The orthonormal DCT's row `frequency` (above 0) for blocks of `n` pixels, repeated to `size` pixels."""
    place = torch.arange(size) % n
    return (2 / n) ** 0.5 * torch.cos(math.pi * (2 * place + 1) * frequency / (2 * n))
