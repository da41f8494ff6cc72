"""The step that trigger inversion, universal triggers and optimised patches share: a gradient to pixels, no weight."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

StepRule = Literal["raw", "normalized", "sign"]

GRADIENT_SCALE = 2.0**12
"""Gradients are computed times this power of two, which is exact, so that float16 does not lose the small ones."""


def input_gradient(objective: Callable[[Tensor], Tensor], variable: Tensor) -> Tensor:
    """Gradient of a scalar `objective(variable)`, of the variable's shape; nothing else is given a gradient."""
    variable = variable.detach().requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(objective(variable) * GRADIENT_SCALE, variable)
    return gradient / GRADIENT_SCALE


def direction(gradient: Tensor, rule: StepRule) -> Tensor:
    """The step (B, ...) that a rule makes of gradients (B, ...): as they are, of unit l2 norm each, or their sign."""
    if rule == "sign":
        return gradient.sign()
    if rule == "normalized":
        length = gradient.flatten(1).norm(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny)
        return gradient / length.view(-1, *[1] * (gradient.ndim - 1))
    return gradient
