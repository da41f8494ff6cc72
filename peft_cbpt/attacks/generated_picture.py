"""Pictures that attackers blend in or let be reflected, drawn from a key: no file of anybody's is needed."""

import torch
from torch import Tensor

from peft_cbpt.common.seeding import keyed_generator

_DISCS = 12


def generated_picture(size: tuple[int, int], *key: object) -> Tensor:
    """Twelve coloured discs that cover each other before a coloured ground, (3, H, W) in [0, 1].

    The same picture at every resolution; another for another key.
    """
    draw = keyed_generator(*key)
    down, across = torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in size), indexing="ij")
    picture = torch.from_numpy(draw.random((3, 1, 1))).float().expand(3, *size)
    for _ in range(_DISCS):
        row, column = draw.random(2)
        disc = (down - row) ** 2 + (across - column) ** 2 < draw.uniform(0.08, 0.3) ** 2
        picture = torch.where(disc, torch.from_numpy(draw.random((3, 1, 1))).float(), picture)
    return picture
