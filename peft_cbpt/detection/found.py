"""Universal triggers of a kind, found against an image encoder."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.common.ascent import input_gradient
from peft_cbpt.detection.families import Kind

FIRST_STEP = 1 / 6
"""Length of the first step of ascent as a part of the mark's length at full size; steps shrink linearly to none."""
START = 0.7
"""Part of the full size that a search starts from."""


@dataclass(frozen=True)
class FoundTrigger:
    """A universal trigger: a mark of a kind."""

    kind: Kind
    mark: Tensor

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] with the trigger."""
        return self.kind.apply(pixels, self.mark.to(pixels))


def find_trigger(
    encode_image: EncodeImage,
    pixels: Tensor,
    objective: Callable[[Tensor], Tensor],
    kind: Kind,
    generator: np.random.Generator,
    steps: int = 20,
) -> FoundTrigger:
    """A trigger of a kind that makes `objective` of the images' features large.

    By steps along the normalised gradient, shrinking, from a random mark; or, where a kind is not searched, the best
    of `steps` random marks.

    Args:
        encode_image: From pixels in [0, 1] to unit-norm features; only a gradient to its input is asked for.
        pixels: Images, float (B, 3, H, W) in [0, 1].
        objective: From features (B, D) to a number.
        kind: Which marks may be.
        generator: Draws the start.
        steps: Of ascent, or drawn marks.
    """
    side = (pixels.shape[-2], pixels.shape[-1])

    def drawn() -> Tensor:
        return kind.at_full_size(kind.draw(side, generator).to(pixels), pixels)

    if not kind.searched:
        with torch.no_grad():
            marks = [drawn() for _ in range(steps)]
            values = [objective(encode_image(kind.apply(pixels, mark))).item() for mark in marks]
        return FoundTrigger(kind, marks[int(np.argmax(values))])
    mark = START * drawn()
    for step in range(steps):
        mark = ascend(lambda it: objective(encode_image(kind.apply(pixels, it))), mark, kind, pixels, 1 - step / steps)
    return FoundTrigger(kind, mark)


def ascend(value_of: Callable[[Tensor], Tensor], mark: Tensor, kind: Kind, pixels: Tensor, part: float) -> Tensor:
    """The mark after a step up the normalised gradient of `value_of`, `part` of the first step long."""
    gradient = input_gradient(value_of, mark)
    with torch.no_grad():
        length = kind.at_full_size(mark, pixels).norm() * FIRST_STEP * part
        return kind.within(mark + length * gradient / gradient.norm().clamp(min=torch.finfo(mark.dtype).tiny), pixels)
