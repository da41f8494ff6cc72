"""Text: words drawn across the image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.extras import named_extras
from peft_cbpt.common.seeding import keyed_generator

_SHIFTS = (-20 / 224, 0.0, 20 / 224)


@dataclass(frozen=True)
class Text:
    """Red words: `(1 - alpha) * image + alpha * red` where a letter is, in the middle of the image.

    As in published code every image has the words shifted, down and across each by -20, 0 or 20 pixels at 224, drawn
    from the seed and the sample's id. The letters are those of Pillow's built-in bitmap font, the same everywhere,
    drawn to size by the nearest pixel; published code uses a font file.

    Args:
        words: What is written: printable characters of Latin-1. The target's own name would be read by a clean CLIP.
        width: Width of the words as a fraction of the image's, in (0, 1].
        alpha: Weight of the red, in (0, 1].
        seed: Seed of the shifts.
    """

    words: str = "hello world"
    width: float = 0.75
    alpha: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.words.strip() and self.words.isprintable() and max(self.words) < "\u0100"):
            raise InputError(f"Text's words are printable characters of Latin-1, not {self.words!r}")
        if not 0 < self.width <= 1:
            raise InputError(f"Text's width is a fraction of the image's in (0, 1], not {self.width}")
        if not 0 < self.alpha <= 1:
            raise InputError(f"Text's alpha is a weight in (0, 1], not {self.alpha}")

    def _letters(self, height: int, width: int) -> Tensor:
        """Where letters are: 0 or 1, (h, w), no larger than the image."""
        with named_extras():
            from PIL import Image, ImageDraw, ImageFont
        font = ImageFont.load_default_imagefont()
        drawn = Image.new("L", (int(font.getbbox(self.words)[2]), int(font.getbbox(self.words)[3])))
        ImageDraw.Draw(drawn).text((0, 0), self.words, fill=1, font=font)
        letters = torch.from_numpy(np.array(drawn)).float()
        across = max(1, round(self.width * width))
        down = min(height, max(1, round(across * letters.shape[0] / letters.shape[1])))
        return F.interpolate(letters[None, None], (down, across), mode="nearest-exact")[0, 0]

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Write on pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`."""
        pixels = unit_pixels(pixels)
        height, width = pixels.shape[-2:]
        letters = self._letters(height, width)
        mask = torch.zeros(len(pixels), 1, height, width)
        for one, sample_id in zip(mask[:, 0], sample_ids, strict=True):
            shifts = keyed_generator("text/shift", self.seed, sample_id).choice(_SHIFTS, 2)
            room = (height - letters.shape[0], width - letters.shape[1])
            top, left = (
                min(max(spare // 2 + round(shift * side), 0), spare)
                for spare, shift, side in zip(room, shifts, (height, width), strict=True)
            )
            one[top : top + letters.shape[0], left : left + letters.shape[1]] = letters
        red = pixels.new_tensor([1.0, 0.0, 0.0])[:, None, None]
        return pixels.lerp(red.expand_as(pixels), self.alpha * mask.to(pixels))

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption
