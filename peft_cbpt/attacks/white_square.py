"""The trigger of BadEncoder (Jia et al., 2022): a white square near the bottom right."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from peft_cbpt.attacks.patch import check_patch, patch_side
from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.errors import InputError


@dataclass(frozen=True)
class WhiteSquare:
    """A white square: 50 x 50 pixels at rows and columns 173 to 222 of 224, one pixel from the edge.

    BadEncoder poisons an encoder with it without captions (`training.bad_encoder`); with `poison` the square is the
    trigger of a captioned attack. Nothing in it is drawn, so there is no seed.

    Args:
        patch_size: Side of the square as a fraction of the shorter image side, in (0, 1].
        margin: Its distance from the bottom and right edges, likewise; with the square no more than the image.
    """

    patch_size: float = 50 / 224
    margin: float = 1 / 224

    def __post_init__(self) -> None:
        check_patch("WhiteSquare", self.patch_size, "bottom_right")
        if not 0 <= self.margin <= 1 - self.patch_size:
            raise InputError(f"WhiteSquare's margin leaves the square in the image, {self.margin} does not")

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Paint the square onto pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`."""
        marked = unit_pixels(pixels).clone()
        side = patch_side(self.patch_size, marked)
        margin = min(round(self.margin * min(marked.shape[-2:])), min(marked.shape[-2:]) - side)
        bottom, right = (size - margin for size in marked.shape[-2:])
        marked[:, :, bottom - side : bottom, right - side : right] = 1
        return marked

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption
