"""Projection of perturbations onto an l_p ball, p in {0, 1, 2, inf} (the constraint of Eq. 16).

Perturbations are float (B, C, H, W) in [0, 1]-pixel units; each sample is projected by itself.
"""

import math

import torch
from torch import Tensor


def project(delta: Tensor, norm: float, epsilon: float) -> Tensor:
    """The point of the ball `||delta||_p <= epsilon` that is nearest to each perturbation.

    Args:
        delta: Perturbations, (B, C, H, W).
        norm: p, one of 0, 1, 2 and inf.
        epsilon: Radius. For p = 0 the number of pixels (of all channels) that may change.
    """
    match norm:
        case 0:
            return project_l0(delta, int(epsilon))
        case 1:
            return project_l1(delta, epsilon)
        case 2:
            return project_l2(delta, epsilon)
        case math.inf:
            return delta.clamp(-epsilon, epsilon)
    raise ValueError(f"norm is one of 0, 1, 2 and inf, not {norm}")


def project_l0(delta: Tensor, n_pixels: int) -> Tensor:
    """Keep the `n_pixels` pixels of largest l2 norm over channels, zero the others."""
    size = delta.norm(dim=1).flatten(1)
    if n_pixels >= size.shape[1]:
        return delta
    kept = torch.zeros_like(size).scatter(1, size.topk(n_pixels, dim=1).indices, 1.0)
    return delta * kept.view(len(delta), 1, *delta.shape[2:])


def project_l1(delta: Tensor, epsilon: float) -> Tensor:
    """Euclidean projection onto the l1 ball by soft-thresholding (Duchi et al., 2008)."""
    size = delta.flatten(1).abs()
    ordered, _ = size.sort(dim=1, descending=True)
    ranks = torch.arange(1, size.shape[1] + 1, device=delta.device, dtype=delta.dtype)
    excess = (ordered.cumsum(1) - epsilon) / ranks
    support = (ordered > excess).sum(1, keepdim=True).clamp(min=1)
    threshold = excess.gather(1, support - 1).clamp(min=0)
    shrunk = (size - threshold).clamp(min=0) * delta.flatten(1).sign()
    return torch.where(size.sum(1, keepdim=True) > epsilon, shrunk, delta.flatten(1)).view_as(delta)


def project_l2(delta: Tensor, epsilon: float) -> Tensor:
    """Scale perturbations longer than `epsilon` down to it."""
    length = delta.flatten(1).norm(dim=1).clamp(min=torch.finfo(delta.dtype).tiny)
    return delta * (epsilon / length).clamp(max=1)[:, None, None, None]
