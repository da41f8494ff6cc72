"""Changed clean images: cheap, on tensors, far more varied than the images themselves.

What an encoder must keep of images that nobody gave is asked for on these. No two images are changed alike, so that no
change is a universal trigger.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_BINOMIAL = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16


def mixed(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Another image shines through, or stands behind a random outline."""
    count, _, height, width = pixels.shape
    other = pixels[torch.randperm(count, generator=generator)]
    shine = 0.6 * torch.rand(count, 1, 1, 1, generator=generator)
    outline = _smooth(count, 1, (height, width), 4, generator) > 0.5 * torch.randn(count, 1, 1, 1, generator=generator)
    mask = torch.where(_some(count, 0.5, generator), outline.float(), shine).to(pixels)
    return torch.lerp(pixels, other, mask)


def moved(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Turned by up to 54 degrees, stretched, shifted, flipped, and bent."""
    count, _, height, width = pixels.shape
    angle = 0.6 * math.pi * _around_zero(count, generator=generator)
    stretch = _around_zero(count, 2, generator=generator).exp()
    flip = 1.0 - 2.0 * (torch.rand(count, generator=generator) < 0.5)
    cos, sin = angle.cos(), angle.sin()
    across = torch.stack([flip * stretch[:, 0] * cos, -stretch[:, 0] * sin], 1)
    down = torch.stack([flip * stretch[:, 1] * sin, stretch[:, 1] * cos], 1)
    shift = 0.5 * _around_zero(count, 2, 1, generator=generator)
    grid = F.affine_grid(
        torch.cat([torch.stack([across, down], 1), shift], 2), list(pixels.shape), align_corners=False
    )
    bend = 0.12 * torch.rand(count, 1, 1, 1, generator=generator)
    grid = grid + bend * _smooth(count, 2, (height, width), 5, generator).permute(0, 2, 3, 1)
    return F.grid_sample(pixels, grid.to(pixels), padding_mode="reflection", align_corners=False)


def recoloured(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Colours turned by a random rotation of their space, more or less, and shifted."""
    count = len(pixels)
    rotation, _ = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator))
    mixing = torch.lerp(torch.eye(3).expand(count, 3, 3), rotation, torch.rand(count, 1, 1, generator=generator))
    shift = 0.5 + 0.3 * _around_zero(count, 3, 1, 1, generator=generator)
    return (torch.einsum("noc,nchw->nohw", mixing.to(pixels), pixels - 0.5) + shift.to(pixels)).clamp(0, 1)


def filtered(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Blurred or sharpened."""
    kernel = (_BINOMIAL[:, None] * _BINOMIAL).expand(3, 1, 5, 5).to(pixels)
    blurred = F.conv2d(F.pad(pixels, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)
    amount = 4 * torch.rand(len(pixels), 1, 1, 1, generator=generator) - 1
    return (pixels + amount.to(pixels) * (pixels - blurred)).clamp(0, 1)


def flattened(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Painted in a few flat tones, in coloured light."""
    light = 0.5 + torch.rand(len(pixels), 3, 1, 1, generator=generator)
    tones = torch.randint(3, 9, (len(pixels), 1, 1, 1), generator=generator).to(pixels)
    return ((pixels * light.to(pixels)).clamp(0, 1) * tones).round() / tones


def traced(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Drawn: the outlines of what is grey in the image, dark on light or light on dark."""
    grey = pixels.mean(1, keepdim=True)
    down = F.pad(grey.diff(dim=2), (0, 0, 0, 1))
    across = F.pad(grey.diff(dim=3), (0, 1))
    lines = (
        torch.hypot(down, across) * (4 + 4 * torch.rand(len(pixels), 1, 1, 1, generator=generator)).to(pixels)
    ).clamp(0, 1)
    inverted = _some(len(pixels), 0.75, generator).to(pixels.device)
    return torch.where(inverted, 1 - lines, lines).expand_as(pixels)


def clouded(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """With coloured noise, of any coarseness, added."""
    count, _, height, width = pixels.shape
    cells = int(torch.randint(6, max(7, min(height, width)), (1,), generator=generator))
    strength = 0.2 * torch.rand(count, 1, 1, 1, generator=generator)
    return (pixels + (strength * _smooth(count, 3, (height, width), cells, generator)).to(pixels)).clamp(0, 1)


CHANGES: tuple[tuple[Callable[[Tensor, torch.Generator], Tensor], float], ...] = (
    (mixed, 0.4),
    (moved, 0.6),
    (recoloured, 0.5),
    (filtered, 0.4),
    (flattened, 0.2),
    (traced, 0.15),
    (clouded, 0.3),
)
"""What is done to images, in this order, and to what part of them."""


def changed_images(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Every image changed in its own way, by some of `CHANGES`.

    Args:
        pixels: (B, 3, H, W) in [0, 1].
        generator: On the CPU; the same gives the same.

    Returns:
        As many pixels in [0, 1], without gradient.
    """
    for change, part in CHANGES:
        pixels = torch.where(_some(len(pixels), part, generator).to(pixels.device), change(pixels, generator), pixels)
    return pixels


def _some(count: int, part: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, 1, 1, 1, generator=generator) < part


def _around_zero(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.rand(*shape, generator=generator) - 0.5


def _smooth(count: int, channels: int, side: tuple[int, int], cells: int, generator: torch.Generator) -> Tensor:
    """Smooth random fields (count, channels, H, W), about standard normal."""
    coarse = torch.randn(count, channels, cells, cells, generator=generator)
    return F.interpolate(coarse, side, mode="bicubic", align_corners=True)
