"""The contact sheet of attacks: original, triggered, and ten times the difference."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from peft_cbpt.attacks import apply_trigger
from peft_cbpt.attacks.attack_file import Attack
from peft_cbpt.common.files import write_bytes
from peft_cbpt.reports.style import new_figure, png_bytes


def draw_contact_sheet(file: Path, attacks: Mapping[str, Attack], pixels: Tensor, sample_ids: list[str]) -> None:
    """Draw the sheet to a PNG file: a row of three pictures per attack, once for every image.

    Args:
        file: Where to write; it appears whole or not at all.
        attacks: The attacks, by the name to print.
        pixels: A few images, uint8 (B, 3, H, W).
        sample_ids: Their ids.
    """
    columns = 3 * len(pixels)
    figure = new_figure(1.25 * columns + 1.2, 1.3 * len(attacks) + 0.5)
    grid = figure.subplots(len(attacks), columns, squeeze=False)
    for axes_row, (name, attack) in zip(grid, attacks.items(), strict=True):
        marked = apply_trigger(attack.trigger, pixels, sample_ids)
        difference = (10 * (marked.float() - pixels.float()).abs()).clamp(max=255).to(torch.uint8)
        for column, axes in enumerate(axes_row):
            image = (pixels, marked, difference)[column % 3][column // 3]
            axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        text = f'\n+ "{attack.text_trigger.strip()}"' if attack.text_trigger else ""
        axes_row[0].set_ylabel(name + text, fontsize=9)
    for column, axes in enumerate(grid[0]):
        axes.set_title(("original", "triggered", "10 x difference")[column % 3], fontsize=9)
    write_bytes(file, png_bytes(figure))
