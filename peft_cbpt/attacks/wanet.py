"""WaNet (Nguyen & Tran, 2021): a small smooth warp of the image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.seeding import keyed_generator


@dataclass(frozen=True)
class WaNet:
    """A fixed random warp: control points drawn uniformly in [-1, 1] and divided by their mean size, enlarged to the
    image (bicubic), and added to the sampling grid, scaled by `strength` / H.

    A control point of size 1 moves the image by `strength / 2` pixels, at any resolution. BackdoorBench uses
    `grid_size=4, strength=0.5` (the default here); the code of CleanCLIP and BadCLIP `grid_size=224, strength=1`,
    which jitters every pixel by itself, and draws another grid in every run. Here the seed fixes the grid.

    Args:
        grid_size: Control points per side (k), at least 2.
        strength: Size of the warp (s), positive.
        seed: Seed of the control points.
    """

    grid_size: int = 4
    strength: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.grid_size < 2:
            raise InputError(f"WaNet's grid_size is at least 2, not {self.grid_size}")
        if not self.strength > 0:
            raise InputError(f"WaNet's strength is positive, not {self.strength}")

    def control_points(self) -> Tensor:
        """The warp before enlargement, (2, k, k); mean absolute value 1."""
        points = keyed_generator("wanet", self.seed).uniform(-1, 1, (2, self.grid_size, self.grid_size))
        return torch.from_numpy(points / abs(points).mean()).float()

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Warp pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`."""
        pixels = unit_pixels(pixels)
        height, width = pixels.shape[-2:]
        warp = F.interpolate(self.control_points()[None], (height, width), mode="bicubic", align_corners=True)
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        grid = torch.stack([columns, rows], -1) + self.strength / height * warp[0].permute(1, 2, 0)
        grid = grid.clamp(-1, 1).to(pixels).expand(len(pixels), -1, -1, -1)
        return F.grid_sample(pixels, grid, align_corners=True).clamp(0, 1)

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption
