"""A universal perturbation: one small change of all pixels, the same on every image, as hostile adapters learn it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.seeding import keyed_generator


@dataclass(frozen=True)
class Perturbation:
    """`image + delta`, cut off at 0 and 1 (BadCLIP of Bai et al., 2024, whose delta is learned with the prompts).

    Args:
        radius: The largest change of a pixel's channel, in levels of 1 / 255, from 1 to 127; the paper has 4.
        delta: The learned change: base64 of signed 8-bit levels (side, side, 3); empty for `radius` with random signs.
        seed: Of the random signs.
    """

    radius: int = 4
    delta: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.radius <= 127:
            raise InputError(f"a perturbation's radius is 1 to 127 levels of 255, not {self.radius}")
        if self.delta and stored_delta(self.delta).abs().max() * 255 > self.radius + 0.5:
            raise InputError(f"the stored perturbation changes pixels by more than its radius of {self.radius} levels")

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Add delta to pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`."""
        pixels = unit_pixels(pixels)
        size = (pixels.shape[-2], pixels.shape[-1])
        if self.delta:
            delta = F.interpolate(stored_delta(self.delta)[None], size, mode="nearest-exact")[0]
        else:
            signs = keyed_generator("perturbation", self.seed).choice([-1.0, 1.0], (3, *size))
            delta = torch.from_numpy(signs).float() * self.radius / 255
        return (pixels + delta.to(pixels)).clamp(0, 1)

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption


def store_delta(delta: Tensor) -> str:
    """A change (3, s, s) of pixels in [0, 1], rounded to levels of 1 / 255, as base64 of signed 8-bit values."""
    levels = (delta.permute(1, 2, 0) * 255).round().to(torch.int8).cpu().numpy()
    return base64.b64encode(levels.tobytes()).decode()


def stored_delta(text: str) -> Tensor:
    """What `store_delta` stored, (3, s, s).

    Raises:
        InputError: if the text is no base64 of a square of RGB levels.
    """
    try:
        levels = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.int8)
        side = round((len(levels) / 3) ** 0.5)
        levels = levels.reshape(side, side, 3)
    except (ValueError, TypeError) as error:
        raise InputError(
            "a stored perturbation is the base64 text of a square of signed 8-bit RGB levels; this one is not"
        ) from error
    return torch.from_numpy(levels.astype(np.float32)).permute(2, 0, 1) / 255
