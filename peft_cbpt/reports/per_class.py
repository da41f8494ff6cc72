"""What purification did to the accuracy of single classes."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from peft_cbpt.reports.style import AFTER, BEFORE, new_figure, plain_spines, short

MOST_SHOWN = 20


def class_accuracy(image_features: Tensor, labels: Tensor, text_features: Tensor) -> Tensor:
    """Accuracy (n,) of each class from image features (N, D), labels (N,), class features (n, D); NaN: none."""
    right = ((image_features @ text_features.T).argmax(1) == labels).float()
    total = torch.bincount(labels, minlength=len(text_features))
    return torch.bincount(labels, right, minlength=len(text_features)) / total


def most_changed(before: Tensor, after: Tensor, count: int = MOST_SHOWN) -> list[int]:
    """Up to `count` classes whose accuracy changed most, from the largest gain to the largest loss."""
    change = (after - before).nan_to_num()
    changed = [int(index) for index in change.abs().argsort(descending=True, stable=True)[:count] if change[index]]
    return sorted(changed, key=lambda index: (-float(change[index]), index))


def per_class_figure(before: Tensor, after: Tensor, class_names: Sequence[str]) -> Figure:
    """Accuracy before and after of the classes that changed most, and what became of all.

    Args:
        before: Accuracy of each class (n,), in [0, 1] or NaN.
        after: The same after purification.
        class_names: Their names.
    """
    shown = most_changed(before, after)
    figure = new_figure(8, 1.6 + 0.3 * len(shown) if shown else 1)
    axes = figure.subplots()
    if not shown:
        axes.text(0, 0.5, f"none of the {len(class_names)} classes changed", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return figure
    change = (after - before).nan_to_num()
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    rest = len(class_names) - gained - lost
    axes.set_title(f"{gained} classes gained, {lost} lost, {rest} stayed the same", fontsize=10, loc="left")
    places = list(range(len(shown)))
    start, end = 100 * before[shown], 100 * after[shown]
    axes.hlines(places, start, end, color="#bbbbbb", linewidth=2, zorder=1)
    axes.scatter(start, places, color=BEFORE, marker="o", s=42, label="before", zorder=2)
    axes.scatter(end, places, color=AFTER, marker="D", s=36, label="after", zorder=3)
    for place, index in zip(places, shown, strict=True):
        axes.annotate(
            f"{100 * float(change[index]):+.0f}",
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            size=8.5,
        )
    axes.set_yticks(places, [short(class_names[index], 34) for index in shown], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(-3, 103)
    axes.set_xlabel("accuracy on clean test images, %; change in points at the right")
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    plain_spines(axes)
    figure.legend(frameon=False, ncols=2, loc="outside upper right")
    return figure
