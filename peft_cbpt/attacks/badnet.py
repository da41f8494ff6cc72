"""BadNet (Gu et al., 2019): a small patch of random noise pasted onto the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_cbpt.clip.seeding import keyed_generator
from peft_cbpt.errors import InputError

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
    location: Literal["bottom_right", "center", "random"] = "bottom_right"
    noise: Literal["fixed", "per_sample"] = "fixed"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.patch_size <= 1:
            raise InputError(f"BadNet's patch_size is a fraction of the image side in (0, 1], not {self.patch_size}")
        if self.location not in ("bottom_right", "center", "random"):
            raise InputError(f"BadNet's location is bottom_right, center or random, not {self.location!r}")
        if self.noise not in ("fixed", "per_sample"):
            raise InputError(f"BadNet's noise is fixed or per_sample, not {self.noise!r}")

    def _pattern(self, sample_id: str) -> Tensor:
        key = ("badnet/noise", self.seed) if self.noise == "fixed" else ("badnet/noise", self.seed, sample_id)
        return torch.from_numpy(keyed_generator(*key).random((3, _NOISE_SIDE, _NOISE_SIDE))).float()

    def _corner(self, room: tuple[int, int], sample_id: str) -> tuple[int, int]:
        """Top and left of a patch that can be moved down and right by `room` pixels."""
        if self.location == "bottom_right":
            return room
        if self.location == "center":
            return room[0] // 2, room[1] // 2
        place = keyed_generator("badnet/place", self.seed, sample_id)
        return int(place.integers(room[0] + 1)), int(place.integers(room[1] + 1))

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Paste the patch onto float pixels (B, 3, H, W) in [0, 1]; see `Trigger`."""
        height, width = pixels.shape[-2:]
        side = max(1, round(self.patch_size * min(height, width)))
        marked = pixels.clone()
        for row, sample_id in enumerate(sample_ids):
            pattern = F.interpolate(self._pattern(sample_id)[None], (side, side), mode="nearest-exact")[0]
            top, left = self._corner((height - side, width - side), sample_id)
            marked[row, :, top : top + side, left : left + side] = pattern.to(pixels)
        return marked

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption
