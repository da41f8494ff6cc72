"""Seeded renderer of the pocket world: one sprite on a textured background in a captioned colour.

A sample is drawn from its `sample_id` alone, so the same id gives the same picture in any batch, order or process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.pocket.atlas import class_names, load_sprites

IMAGE_SIZE = 48

BACKGROUND_COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.80, 0.20, 0.18),
    "green": (0.25, 0.60, 0.28),
    "blue": (0.20, 0.35, 0.78),
    "yellow": (0.90, 0.80, 0.25),
    "purple": (0.50, 0.25, 0.62),
    "orange": (0.92, 0.55, 0.15),
    "pink": (0.93, 0.60, 0.72),
    "brown": (0.45, 0.30, 0.18),
    "grey": (0.52, 0.52, 0.52),
    "white": (0.93, 0.93, 0.93),
    "black": (0.10, 0.10, 0.10),
}


@dataclass(frozen=True)
class Domain:
    """Ranges the renderer draws from; lengths are fractions of the image side, angles are degrees."""

    scale: tuple[float, float]
    max_rotation: float
    texture: float
    noise: float
    contrast: tuple[float, float]
    max_distractors: int = 0
    style: str = "photo"


# The pocket counterparts of ImageNet, V2, Sketch, R and A.
DOMAINS: dict[str, Domain] = {
    "base": Domain((0.55, 0.95), 25, 0.16, 0.03, (0.85, 1.15)),
    "v2": Domain((0.50, 0.90), 35, 0.20, 0.05, (0.75, 1.25)),
    "sketch": Domain((0.60, 0.95), 20, 0.04, 0.02, (0.9, 1.1), style="sketch"),
    "rendition": Domain((0.60, 0.95), 25, 0.10, 0.02, (0.9, 1.1), style="rendition"),
    "adversarial": Domain((0.45, 0.70), 45, 0.22, 0.05, (0.6, 1.0), max_distractors=2),
}


@dataclass(frozen=True)
class Scene:
    """Everything random about one picture. `placements` rows: sprite, scale, angle, flip, centre x, centre y."""

    background: str
    colour: np.ndarray  # (3,)
    texture: np.ndarray  # (3, 6, 6)
    noise: np.ndarray  # (1, 48, 48)
    contrast: float
    tint: np.ndarray  # (3,)
    placements: np.ndarray  # (k, 6)


def _placement(rng: np.random.Generator, sprite: int, domain: Domain) -> list[float]:
    scale = rng.uniform(*domain.scale)
    room = 1 - scale
    angle = np.deg2rad(rng.uniform(-domain.max_rotation, domain.max_rotation))
    return [sprite, scale, angle, rng.choice([-1.0, 1.0]), rng.uniform(-room, room), rng.uniform(-room, room)]


def draw_scene(label: int, sample_id: str, domain: Domain) -> Scene:
    """Draw the random parts of sample `sample_id` of class `label`."""
    rng = keyed_generator(sample_id)
    background = str(rng.choice(list(BACKGROUND_COLOURS)))
    placements = [_placement(rng, label, domain)]
    for _ in range(int(rng.integers(domain.max_distractors + 1))):
        other = int(rng.integers(len(class_names())))
        sprite, scale, *rest = _placement(rng, other, domain)
        placements.insert(0, [sprite, 0.6 * scale, *rest])
    return Scene(
        background=background,
        colour=np.asarray(BACKGROUND_COLOURS[background]) + rng.uniform(-0.06, 0.06, 3),
        texture=rng.normal(0, domain.texture, (1, 6, 6)) + rng.normal(0, domain.texture / 4, (3, 6, 6)),
        noise=rng.normal(0, domain.noise, (1, IMAGE_SIZE, IMAGE_SIZE)),
        contrast=rng.uniform(*domain.contrast),
        tint=rng.uniform(0.6, 1.4, 3),
        placements=np.asarray(placements),
    )


@cache
def _sprite_pyramid() -> list[Tensor]:
    """Premultiplied RGBA sprites at 64, 48 and 32 px, each (n_classes, 4, side, side)."""
    sprites = load_sprites()
    return [sprites, *(F.interpolate(sprites, side, mode="area") for side in (48, 32))]


def _warped_sprites(placements: Tensor, size: int) -> Tensor:
    """Sprites of rows (b, 6) put in place on an empty canvas, premultiplied RGBA, (b, 4, size, size)."""
    sprite, scale, angle, flip, x, y = placements.unbind(1)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # `affine_grid` maps canvas to sprite coordinates: undo the shift, then rotation, flip and scale
    rotation = torch.stack([flip * cos, flip * sin, -sin, cos], 1).view(-1, 2, 2) / scale[:, None, None]
    shift = -rotation @ torch.stack([x, y], 1)[:, :, None]
    grid = F.affine_grid(torch.cat([rotation, shift], 2), [len(placements), 4, size, size], align_corners=False)
    drawn_side = (scale * size).tolist()
    pyramid = _sprite_pyramid()
    level = torch.tensor([next((i for i in (2, 1) if pyramid[i].shape[-1] >= side), 0) for side in drawn_side])
    canvas = torch.empty(len(placements), 4, size, size)
    for index, sprites in enumerate(pyramid):
        rows = (level == index).nonzero()[:, 0]
        if len(rows):
            chosen = sprites[sprite[rows].long()]
            canvas[rows] = F.grid_sample(chosen, grid[rows], align_corners=False)
    return canvas


def _as_sketch(pixels: Tensor) -> Tensor:
    """Dark pencil lines on white paper where the picture's brightness has edges."""
    grey = pixels.mean(1, keepdim=True)
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernels = torch.stack([sobel, sobel.T])[:, None]
    edges = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels).norm(dim=1, keepdim=True)
    return (1 - 0.8 * edges).clamp(0.1, 1).expand_as(pixels)


def _as_rendition(pixels: Tensor, tint: Tensor) -> Tensor:
    """Painted in few flat tones under a coloured light."""
    return torch.round((pixels * tint[:, :, None, None]).clamp(0, 1) * 5) / 5


def render(scenes: Sequence[Scene], domain: Domain, size: int = IMAGE_SIZE) -> Tensor:
    """Render scenes to uint8 pixels of shape (B, 3, size, size)."""

    def batch(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(scene, name) for scene in scenes])).float()

    texture = F.interpolate(batch("texture"), size, mode="bicubic", align_corners=False)
    noise = F.interpolate(batch("noise"), size, mode="nearest")
    pixels = (batch("colour")[:, :, None, None] + texture).clamp(0, 1)
    for depth in range(1 + domain.max_distractors):
        rows = [index for index, scene in enumerate(scenes) if len(scene.placements) > depth]
        if rows:
            layer = np.stack([scenes[index].placements[depth] for index in rows])
            sprites = _warped_sprites(torch.from_numpy(layer).float(), size)
            pixels[rows] = pixels[rows] * (1 - sprites[:, 3:]) + sprites[:, :3]
    if domain.style == "sketch":
        pixels = _as_sketch(pixels)
    elif domain.style == "rendition":
        pixels = _as_rendition(pixels, batch("tint"))
    contrast = torch.tensor([scene.contrast for scene in scenes]).float()[:, None, None, None]
    pixels = (pixels - 0.5) * contrast + 0.5 + noise
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
