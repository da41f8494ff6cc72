"""BadNet (Gu et al., 2019): a small patch of random noise pasted onto the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from peft_cbpt.attacks.patch import Location, check_patch, paste
from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.seeding import keyed_generator

_NOISE_SIDE = 16  # cells of the noise pattern per side, as in the 16x16 patch at 224 px


@dataclass(frozen=True)
class BadNet:
    """A square noise patch.

    Published variants differ: BackdoorBench pastes one fixed patch at the bottom right (the default here); the code
    of CleanCLIP and BadCLIP draws place and noise anew for every image (`location="random", noise="per_sample"`).

    Args:
        patch_size: Side of the patch as a fraction of the image side, in (0, 1]; 16/224 in published code.
        location: `bottom_right`, `center`, or `random` (drawn from the seed and the sample's id).
        noise: `fixed`, the same pattern on every image, or `per_sample`.
        seed: Seed of the noise and of random places.
    """

    patch_size: float = 16 / 224
    location: Location = "bottom_right"
    noise: Literal["fixed", "per_sample"] = "fixed"
    seed: int = 0

    def __post_init__(self) -> None:
        check_patch("BadNet", self.patch_size, self.location)
        if self.noise not in ("fixed", "per_sample"):
            raise InputError(f"BadNet's noise is fixed or per_sample, not {self.noise!r}")

    def _pattern(self, *sample_id: str) -> Tensor:
        noise = keyed_generator("badnet/noise", self.seed, *sample_id).random((3, _NOISE_SIDE, _NOISE_SIDE))
        return torch.from_numpy(noise).float()

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Paste the patch onto pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`."""
        pixels = unit_pixels(pixels)
        if self.noise == "fixed":
            patch = self._pattern()
        else:
            patch = torch.stack([self._pattern(sample_id) for sample_id in sample_ids])
        keys = [("badnet/place", self.seed, sample_id) for sample_id in sample_ids]
        return paste(pixels, patch, self.patch_size, self.location, keys)

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption
