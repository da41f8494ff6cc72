"""Universal triggers: one perturbation shared by all images, as an attacker's is, found by gradient ascent."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage

STEPS = 20
_FIRST_STEP = 1 / 6
"""Length of the first step as a part of the budget's radius; steps shrink linearly to none."""
_START = 0.7


def collapse(features: Tensor) -> Tensor:
    """Mean cosine between the images of a batch, from unit-norm features (B, D): how alike a trigger makes them.

    After DECREE (Feng et al., 2023), which finds backdoors in encoders by triggers under which all images look alike.
    """
    return features.mean(0).square().sum()


def approach(text_feature: Tensor) -> Callable[[Tensor], Tensor]:
    """Mean cosine of the images to the text feature (D,) of a class, as a function of features (B, D)."""
    return lambda features: (features @ text_feature).mean()


def universal_trigger(
    encode_image: EncodeImage,
    pixels: Tensor,
    objective: Callable[[Tensor], Tensor],
    rms: float,
    start: Tensor | None = None,
) -> Tensor:
    """The perturbation that, added to every image, makes `objective` of their features large.

    `STEPS` steps along the gradient of unit l2 norm, within an l2 ball.

    Args:
        encode_image: From pixels in [0, 1] to unit-norm features; only a gradient to its input is asked for.
        pixels: Images, float (B, 3, H, W) in [0, 1].
        objective: `collapse`, or `approach` of a class; from features (B, D) to a number.
        rms: Radius of the ball as the root mean square change of a pixel's channel, in [0, 1]-pixel units, so that it
            means the same at every resolution.
        start: Where to begin, (3, H, W), scaled to `_START` of the radius; at zero by default.

    Returns:
        The perturbation (3, H, W), without gradient; the triggered images are `(pixels + delta).clamp(0, 1)`.
    """
    radius = rms * math.sqrt(pixels[0].numel())
    delta = torch.zeros_like(pixels[0]) if start is None else start.to(pixels) * (_START * radius / start.norm())
    for step in range(STEPS):
        delta.requires_grad_(True)
        with torch.enable_grad():
            value = objective(encode_image((pixels + delta).clamp(0, 1)))
            (gradient,) = torch.autograd.grad(value, delta)
        length = radius * _FIRST_STEP * (1 - step / STEPS)
        delta = delta.detach() + length * gradient / gradient.norm().clamp(min=torch.finfo(gradient.dtype).tiny)
        delta = delta * (radius / delta.norm()).clamp(max=1)
    return delta
