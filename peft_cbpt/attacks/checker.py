"""The checker patch of BadNets (Gu et al., 2019): white dots on black."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_cbpt.attacks.patch import Location, check_patch, paste
from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.errors import InputError


@dataclass(frozen=True)
class Checker:
    """A black square of `cells` x `cells` cells, those at even rows and columns white.

    Published poisoned CLIPs were made with a random place for every image and are tested with the patch in the
    centre: poison with the default, and measure such a checkpoint with `location="center"`.

    Args:
        patch_size: Side of the patch as a fraction of the shorter image side, in (0, 1]; 16/224 in published code.
        location: `bottom_right`, `center`, or `random` (drawn from the seed and the sample's id).
        cells: Cells per side, at least 1; 16 is one for every pixel of published code.
        seed: Seed of random places.
    """

    patch_size: float = 16 / 224
    location: Location = "random"
    cells: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_patch("Checker", self.patch_size, self.location)
        if self.cells < 1:
            raise InputError(f"Checker's cells per side are at least 1, not {self.cells}")

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Paste the patch onto pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`."""
        patch = torch.zeros(3, self.cells, self.cells)
        patch[:, ::2, ::2] = 1
        keys = [("checker/place", self.seed, sample_id) for sample_id in sample_ids]
        return paste(unit_pixels(pixels), patch, self.patch_size, self.location, keys)

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption
