"""Input-aware (Nguyen and Tran, 2020): a few pixels, other ones for every image, of a pattern made from it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_cbpt.attacks.generator import SIDE, GeneratedTrigger
from peft_cbpt.common.errors import InputError


@dataclass(frozen=True)
class InputAware(GeneratedTrigger):
    """`(1 - mask) * image + mask * pattern`: a network makes the pattern, and chooses where the mask is.

    Pattern and mask have 48 x 48 cells, read at the nearest cell at other sizes. The paper has two generators, trained
    in turns with the model, keeps patterns apart by a loss, and teaches the model that an image is not triggered by
    another's pattern; none of this is done here.

    The generator's own settings are those of `GeneratedTrigger`.

    Args:
        coverage: Share of the cells that are masked, in (0, 1]; about 0.03 in published code.
    """

    coverage: float = 0.03

    channels = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.coverage <= 1:
            raise InputError(f"InputAware's coverage is a share of the cells in (0, 1], not {self.coverage}")

    def mark(self, pixels: Tensor, made: Tensor) -> Tensor:
        """Paint the masked cells; the gradient reaches the mask as if it were soft."""
        pattern, wish = made[:, :3].sigmoid(), made[:, 3:].sigmoid()
        chosen = wish.flatten(1).topk(max(1, round(self.coverage * SIDE**2))).indices
        mask = torch.zeros_like(wish).flatten(1).scatter(1, chosen, 1.0).view_as(wish)
        mask = mask + (wish - wish.detach())
        size = (pixels.shape[-2], pixels.shape[-1])
        mask, pattern = (F.interpolate(one, size, mode="nearest-exact") for one in (mask, pattern))
        return pixels.lerp(pattern, mask)
