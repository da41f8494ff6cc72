"""Universal triggers: one perturbation shared by all images, as an attacker's is, found by gradient ascent."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.common.ascent import input_gradient

_FIRST_STEP = 1 / 6
"""Length of the first step as a part of the budget's radius; steps shrink linearly to none."""
_START = 0.7
MOST_WAVES = 8
"""Across the image, of a pattern; SIG has 6."""
CONSTANTS = {"first_step": _FIRST_STEP, "start": _START, "waves": MOST_WAVES}
"""What a trigger depends on beside its budget."""


@dataclass(frozen=True)
class Budget:
    """What a universal trigger may be, and how long it is looked for.

    Args:
        rms: The largest root mean square change of a pixel's channel, in [0, 1]-pixel units, so that it means the same
            at every resolution.
        pattern: Grey, and of at most `MOST_WAVES` waves in either direction. Gradient ascent over all pixels ends in
            fine noise of many colours before it comes to a trigger that is a strong but coarse pattern, as SIG's.
        steps: Of gradient ascent.
    """

    rms: float
    pattern: bool = False
    steps: int = 20

    def part_of(self, delta: Tensor) -> Tensor:
        """The nearest perturbation (3, H, W) that may be, but for its size."""
        if not self.pattern:
            return delta
        rows, columns = (_coarse(size).to(delta) for size in delta.shape[1:])
        return (rows @ delta.mean(0) @ columns).expand_as(delta)


def _coarse(size: int) -> Tensor:
    """The projection (size, size) onto cosines of at most `MOST_WAVES` waves (discrete cosine transform)."""
    places = (torch.arange(size) + 0.5) * math.pi / size
    cosines = torch.cos(torch.arange(min(2 * MOST_WAVES, size))[:, None] * places)
    cosines = cosines / cosines.norm(dim=1, keepdim=True)
    return cosines.T @ cosines


def collapse(features: Tensor) -> Tensor:
    """Mean cosine between the images of a batch, from unit-norm features (B, D): how alike a trigger makes them.

    After DECREE (Feng et al., 2023), which finds backdoors in encoders by triggers under which all images look alike.

    >>> collapse(torch.tensor([[1.0, 0.0], [1.0, 0.0]])), collapse(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    (tensor(1.), tensor(0.))
    """
    return features.mean(0).square().sum()


def approach(text_feature: Tensor) -> Callable[[Tensor], Tensor]:
    """Mean cosine of the images to the text feature (D,) of a class, as a function of features (B, D)."""
    return lambda features: (features @ text_feature).mean()


def universal_trigger(
    encode_image: EncodeImage,
    pixels: Tensor,
    objective: Callable[[Tensor], Tensor],
    budget: Budget,
    start: Tensor | None = None,
) -> Tensor:
    """The perturbation that, added to every image, makes `objective` of their features large.

    Steps along the normalised gradient, shrinking, within an l2 ball; of the gradient only the part that may be.

    Args:
        encode_image: From pixels in [0, 1] to unit-norm features; only a gradient to its input is asked for.
        pixels: Images, float (B, 3, H, W) in [0, 1].
        objective: `collapse`, or `approach` of a class; from features (B, D) to a number.
        budget: What the perturbation may be, its `rms` is the radius of the ball; and how many steps are made.
        start: Where to begin, (3, H, W): the part of it that may be, scaled to `_START` of the radius; at zero by
            default.

    Returns:
        The perturbation (3, H, W), without gradient; the triggered images are `(pixels + delta).clamp(0, 1)`.
    """
    radius = budget.rms * math.sqrt(pixels[0].numel())
    delta = torch.zeros_like(pixels[0])
    if start is not None:
        delta = budget.part_of(start.to(pixels))
        delta = delta * (_START * radius / delta.norm())

    def reached(delta: Tensor) -> Tensor:
        return objective(encode_image((pixels + delta).clamp(0, 1)))

    for step in range(budget.steps):
        gradient = budget.part_of(input_gradient(reached, delta))
        length = radius * _FIRST_STEP * (1 - step / budget.steps)
        delta = delta + length * gradient / gradient.norm().clamp(min=torch.finfo(gradient.dtype).tiny)
        delta = delta * (radius / delta.norm()).clamp(max=1)
    return delta
