"""Random views of photographs for pre-training."""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

SMALLEST_AREA = 0.5
LARGEST_ASPECT = 4 / 3
COLOUR = 0.2


def augment(pixels: Tensor, side: int, generator: Generator) -> Tensor:
    """A random crop, flip and change of brightness, contrast and saturation of every image.

    Args:
        pixels: uint8 (B, 3, H, H).
        side: Side of the views; not less than half of H, below which bilinear sampling would skip pixels.
        generator: Source of randomness, on the CPU.

    Returns:
        Floats (B, 3, side, side) in [0, 1].
    """
    count = len(pixels)

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(count, generator=generator)).to(pixels.device)

    area = uniform(SMALLEST_AREA, 1)
    aspect = uniform(-math.log(LARGEST_ASPECT), math.log(LARGEST_ASPECT)).exp().sqrt()
    width, tall = (area.sqrt() * aspect).clamp(max=1), (area.sqrt() / aspect).clamp(max=1)
    flip = uniform(-1, 1).sign()
    affine = torch.zeros(count, 2, 3, device=pixels.device)
    affine[:, 0, 0], affine[:, 0, 2] = flip * width, uniform(-1, 1) * (1 - width)
    affine[:, 1, 1], affine[:, 1, 2] = tall, uniform(-1, 1) * (1 - tall)
    grid = F.affine_grid(affine, [count, 3, side, side], align_corners=False)
    views = F.grid_sample(pixels.float() / 255, grid, padding_mode="reflection", align_corners=False)

    brightness, contrast, saturation = (uniform(1 - COLOUR, 1 + COLOUR)[:, None, None, None] for _ in range(3))
    views = views * brightness
    mean = views.mean((1, 2, 3), keepdim=True)
    views = mean + contrast * (views - mean)
    grey = views.mean(1, keepdim=True)
    return (grey + saturation * (views - grey)).clamp(0, 1)
