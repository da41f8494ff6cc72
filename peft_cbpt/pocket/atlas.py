"""The sprites of the pocket world: emoji of the Noto Color Emoji font (see NOTICE), one class each."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ASSETS = Path(__file__).parent / "assets"
ATLAS_FILE = ASSETS / "sprites.webp"
SPRITE_SIZE = 64
ATLAS_COLUMNS = 20


def read_sprite_list() -> dict[str, str]:
    """`{class name: Unicode name}` in label order."""
    sprites: dict[str, str] = {}
    for line in (ASSETS / "sprites.txt").read_text().splitlines():
        entry = line.split("#")[0].strip()
        if entry:
            class_name, _, unicode_name = entry.partition(" = ")
            sprites[class_name] = unicode_name or class_name
    return sprites


@cache
def class_names() -> list[str]:
    """The names of all classes of the pocket world, in label order."""
    return list(read_sprite_list())


@cache
def load_sprites() -> Tensor:
    """All sprites as premultiplied RGBA, (n_classes, 4, 64, 64), float32 in [0, 1]."""
    from PIL import Image  # not needed to load an adapter

    atlas = torch.from_numpy(np.asarray(Image.open(ATLAS_FILE).convert("RGBA"), dtype=np.float32) / 255)
    rows = atlas.shape[0] // SPRITE_SIZE
    tiles = atlas.view(rows, SPRITE_SIZE, ATLAS_COLUMNS, SPRITE_SIZE, 4).permute(0, 2, 4, 1, 3)
    sprites = tiles.reshape(-1, 4, SPRITE_SIZE, SPRITE_SIZE)[: len(class_names())].clone()
    sprites[:, :3] *= sprites[:, 3:]
    return sprites
