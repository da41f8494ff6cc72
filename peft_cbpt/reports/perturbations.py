"""Inverted perturbations beside the images they were found on."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from peft_cbpt.reports.style import new_figure, short

GAIN = 10


def perturbations_figure(pixels: Tensor, delta: Tensor, names: Sequence[str], pseudo_targets: Sequence[str]) -> Figure:
    """Original, perturbation (times 10 around mid-grey) and their sum, one column an image.

    Args:
        pixels: Clean images (B, 3, H, W) in [0, 1].
        delta: Their perturbations, same shape.
        names: The true class of each.
        pseudo_targets: y' of each, the class that the perturbation leads to.
    """
    rows = (
        ("original", pixels),
        (f"perturbation\n×{GAIN}", 0.5 + GAIN * delta),
        ("with the\nperturbation", pixels + delta),
    )
    figure = new_figure(1.2 + 1.7 * len(pixels), 5.9)
    grid = figure.subplots(3, len(pixels), squeeze=False)
    for axes_row, (title, images) in zip(grid, rows, strict=True):
        for axes, image in zip(axes_row, images, strict=True):
            axes.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        axes_row[0].set_ylabel(title, fontsize=9)
    for axes, name, target in zip(grid[0], names, pseudo_targets, strict=True):
        axes.set_title(f"{short(name, 18)}\n→ {short(target, 18)}", fontsize=9)
    return figure
