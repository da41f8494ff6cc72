"""Stripes: a patch, or a faint veil, whose columns are drawn from the eight saturated colours."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_cbpt.attacks.patch import Location, check_patch, paste
from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.seeding import keyed_generator


@dataclass(frozen=True)
class Stripes:
    """`(1 - alpha) * image + alpha * stripe` within a square, every column one colour of {-1, 1}^3, clipped to [0, 1].

    With the default weight of 1 the colours saturate to black, white, and the six between. Published code has this
    square at a random place, or the whole image at a weight of 0.03 (`patch_size=1, alpha=0.03`).

    Args:
        patch_size: Side of the square as a fraction of the shorter image side, in (0, 1]; 16/224 in published code.
        location: `bottom_right`, `center`, or `random` (drawn from the seed and the sample's id).
        alpha: Weight of the stripes, in (0, 1].
        columns: Stripes within the square, at least 1; 16 is one for every pixel of published code.
        seed: Seed of the colours and of random places.
    """

    patch_size: float = 16 / 224
    location: Location = "random"
    alpha: float = 1.0
    columns: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_patch("Stripes", self.patch_size, self.location)
        if not 0 < self.alpha <= 1:
            raise InputError(f"Stripes' alpha is a weight in (0, 1], not {self.alpha}")
        if self.columns < 1:
            raise InputError(f"Stripes' columns are at least 1, not {self.columns}")

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Draw the stripes on pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`."""
        pixels = unit_pixels(pixels)
        colours = keyed_generator("stripes/colours", self.seed).choice([-1.0, 1.0], (3, 1, self.columns))
        patch = torch.from_numpy(colours).float().expand(3, self.columns, self.columns)
        keys = [("stripes/place", self.seed, sample_id) for sample_id in sample_ids]
        striped = paste(pixels, patch, self.patch_size, self.location, keys)
        return pixels.lerp(striped, self.alpha).clamp(0, 1)

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption
