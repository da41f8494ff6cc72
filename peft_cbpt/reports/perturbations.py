"""Perturbations beside the images they belong to."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from peft_cbpt.reports.style import new_figure, short


def gain_of(delta: Tensor) -> float:
    """By what a perturbation is multiplied, so that around mid-grey its largest value is just white or black."""
    largest = delta.abs().max().item()
    return 0.5 / largest if largest else 1.0


def perturbations_figure(pixels: Tensor, delta: Tensor, names: Sequence[str], targets: Sequence[str]) -> Figure:
    """Original, perturbation (around mid-grey, each times its own `gain_of`) and their sum, one column an image.

    Args:
        pixels: Clean images (B, 3, H, W) in [0, 1].
        delta: Their perturbations, same shape.
        names: The true class of each.
        targets: The class that each perturbation leads to.
    """
    gains = [gain_of(one) for one in delta]
    magnified = 0.5 + torch.tensor(gains)[:, None, None, None] * delta
    rows = (("original", pixels), ("perturbation,\nmagnified", magnified), ("with the\nperturbation", pixels + delta))
    figure = new_figure(1.2 + 1.7 * len(pixels), 6.1)
    grid = figure.subplots(3, len(pixels), squeeze=False)
    for axes_row, (title, images) in zip(grid, rows, strict=True):
        for axes, image in zip(axes_row, images, strict=True):
            axes.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        axes_row[0].set_ylabel(title, fontsize=9)
    for axes, name, target in zip(grid[0], names, targets, strict=True):
        axes.set_title(f"{short(name, 18)}\n→ {short(target, 18)}", fontsize=9)
    for axes, gain in zip(grid[1], gains, strict=True):
        axes.set_xlabel(f"×{gain:.3g}", fontsize=9)
    return figure
