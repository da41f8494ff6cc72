"""The inner loop: contrastive trigger inversion (Eq. 9-11)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.common.ascent import StepRule, direction, input_gradient
from peft_cbpt.common.errors import InputError
from peft_cbpt.method.projections import project


@dataclass(frozen=True)
class InversionSettings:
    """How triggers are inverted; the defaults are the paper's words taken literally.

    Args:
        norm: p of the budget, one of 0, 1, 2 and inf.
        epsilon: rho of Eq. 16 in [0, 1]-pixel units; for p = 0 a number of pixels.
        steps: SGD steps on the perturbation.
        lr: Step size.
        step_rule: `raw` steps along the gradient, `normalized` along the gradient of unit l2 norm, `sign` along
            its sign (then `lr` is the change of every pixel).
    """

    norm: float = 2
    epsilon: float = 6 / 255
    steps: int = 10
    lr: float = 0.1
    step_rule: StepRule = "raw"

    def __post_init__(self) -> None:
        if self.norm not in (0, 1, 2, math.inf):
            raise InputError(f"inversion norm is one of 0, 1, 2 and inf, not {self.norm}")
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise InputError(f"epsilon is a positive budget in [0, 1]-pixel units, not {self.epsilon}")
        if self.norm == 0 and self.epsilon < 1:
            raise InputError(f"with norm 0 epsilon is a number of pixels, at least 1, not {self.epsilon}")
        if self.steps < 1:
            raise InputError(f"inversion steps must be at least 1, not {self.steps}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"the inversion learning rate must be positive, not {self.lr}")
        if self.step_rule not in ("raw", "normalized", "sign"):
            raise InputError(f"step_rule is raw, normalized or sign, not {self.step_rule!r}")


def contrastive_inversion_loss(perturbed: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """L_CL (Eq. 11), `s(v + delta, v_neg) - s(v + delta, v_pos)`, for unit-norm features (B, D); returns (B,)."""
    return (perturbed * negatives).sum(1) - (perturbed * positives).sum(1)


def invert_triggers(
    encode_image: EncodeImage, pixels: Tensor, positives: Tensor, negatives: Tensor, settings: InversionSettings
) -> Tensor:
    """Perturbations delta* that minimise L_CL within the budget (the inner problem of Eq. 16).

    The loss is summed over samples, so a result never depends on who else is in the batch, and the perturbed images
    stay in [0, 1].

    Args:
        encode_image: f_v, from pixels in [0, 1] to unit-norm features; only a gradient to its input is asked for.
        pixels: Clean images v, float (B, 3, H, W) in [0, 1].
        positives: Features of v_pos, unit-norm (B, D).
        negatives: Features of v_neg, unit-norm (B, D).
        settings: Budget and optimiser.

    Returns:
        delta, same shape as `pixels`, without gradient.
    """

    def loss(delta: Tensor) -> Tensor:
        return contrastive_inversion_loss(encode_image(pixels + delta), positives, negatives).sum()

    delta = torch.zeros_like(pixels)
    for _ in range(settings.steps):
        stepped = delta - settings.lr * direction(input_gradient(loss, delta), settings.step_rule)
        delta = (pixels + project(stepped, settings.norm, settings.epsilon)).clamp(0, 1) - pixels
    return delta
