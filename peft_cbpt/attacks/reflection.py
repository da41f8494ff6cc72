"""Refool (Liu et al., 2020): the reflection of another picture, as in a window pane."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_cbpt.attacks.generated_picture import generated_picture
from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.errors import InputError


@dataclass(frozen=True)
class Reflection:
    """`(1 - alpha) * image + alpha * reflection` of one fixed second picture.

    The paper has three kinds of reflection; here are two. `ghost`: a thick pane mirrors the picture twice, the mean of
    it and of itself shifted by `reach` down and right. `blur`: it is out of focus, blurred by a Gaussian whose
    deviation is `reach`. The paper takes photographs and poisons images of the target only (`label="clean"`); the
    picture here is generated.

    Args:
        alpha: Weight of the reflection, in (0, 1]; 0.6 in published code.
        kind: `ghost` or `blur`.
        reach: Shift or deviation as a fraction of the image's side, in (0, 0.5].
        seed: Seed of the picture.
    """

    alpha: float = 0.6
    kind: Literal["ghost", "blur"] = "ghost"
    reach: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise InputError(f"Reflection's alpha is a weight in (0, 1], not {self.alpha}")
        if self.kind not in ("ghost", "blur"):
            raise InputError(f"Reflection's kind is ghost or blur, not {self.kind!r}")
        if not 0 < self.reach <= 0.5:
            raise InputError(f"Reflection's reach is a fraction of the image side in (0, 0.5], not {self.reach}")

    def reflected(self, height: int, width: int) -> Tensor:
        """The reflection (3, H, W)."""
        picture = generated_picture((height, width), "reflection", self.seed)
        if self.kind == "blur":
            return _blurred(_blurred(picture, self.reach * height).mT, self.reach * width).mT
        shifts = (round(self.reach * height), round(self.reach * width))
        return (picture + picture.roll(shifts, (-2, -1))) / 2

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Mirror the picture in pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`."""
        pixels = unit_pixels(pixels)
        reflection = self.reflected(*pixels.shape[-2:]).to(pixels)
        return ((1 - self.alpha) * pixels + self.alpha * reflection).clamp(0, 1)

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption


def _blurred(picture: Tensor, deviation: float) -> Tensor:
    """A picture (3, H, W) blurred along its rows' direction, down, its edges repeated; deviation in pixels."""
    reach = math.ceil(3 * deviation)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2)
    padded = F.pad(picture[None], (0, 0, reach, reach), mode="replicate")
    kernel = (weights / weights.sum())[None, None, :, None].expand(3, 1, -1, 1)
    return F.conv2d(padded, kernel, groups=3)[0]
