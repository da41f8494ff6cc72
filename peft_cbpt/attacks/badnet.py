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
    of CleanCLIP and BadCLIP draws place and noise anew for every image (`location="random", noise="per_sample"`), in a
    second form normal around the image's mean colour (`noise="around_mean"`).

    Args:
        patch_size: Side of the patch as a fraction of the image side, in (0, 1]; 16/224 in published code.
        location: `bottom_right`, `center`, or `random` (drawn from the seed and the sample's id).
        noise: `fixed`, the same pattern on every image; `per_sample`, another on each; both uniform in [0, 1]; or
            `around_mean`, on each image its mean colour + N(0, 1), clipped.
        seed: Seed of the noise and of random places.
    """

    patch_size: float = 16 / 224
    location: Location = "bottom_right"
    noise: Literal["fixed", "per_sample", "around_mean"] = "fixed"
    seed: int = 0

    def __post_init__(self) -> None:
        check_patch("BadNet", self.patch_size, self.location)
        if self.noise not in ("fixed", "per_sample", "around_mean"):
            raise InputError(f"BadNet's noise is fixed, per_sample or around_mean, not {self.noise!r}")

    def _pattern(self, *sample_id: str) -> Tensor:
        noise = keyed_generator("badnet/noise", self.seed, *sample_id).random((3, _NOISE_SIDE, _NOISE_SIDE))
        return torch.from_numpy(noise).float()

    def _around_mean(self, image: Tensor, sample_id: str) -> Tensor:
        noise = keyed_generator("badnet/normal", self.seed, sample_id).normal(size=(3, _NOISE_SIDE, _NOISE_SIDE))
        return (image.mean((1, 2), keepdim=True) + torch.from_numpy(noise).to(image)).clamp(0, 1)

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Paste the patch onto pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`."""
        pixels = unit_pixels(pixels)
        if self.noise == "fixed":
            patch = self._pattern()
        elif self.noise == "around_mean":
            patch = torch.stack([self._around_mean(*one) for one in zip(pixels, sample_ids, strict=True)])
        else:
            patch = torch.stack([self._pattern(sample_id) for sample_id in sample_ids])
        keys = [("badnet/place", self.seed, sample_id) for sample_id in sample_ids]
        return paste(pixels, patch, self.patch_size, self.location, keys)

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption
