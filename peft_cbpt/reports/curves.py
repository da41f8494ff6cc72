"""Training curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from peft_cbpt.reports.style import ACCENT, AFTER, TARGET, TRIGGERED, new_figure, plain_spines

LOSSES = (
    ("loss_bn", "L_bn", AFTER, "o"),
    ("loss_adv", "L_adv", TRIGGERED, "s"),
    ("loss_align", "L_align", TARGET, "^"),
)
SHARES = (
    ("clean_accuracy", "accuracy on the shots", AFTER, "o"),
    ("inversion_success", "inverted triggers that win", TRIGGERED, "s"),
    ("cache_hit_rate", "look-ups without inversion", ACCENT, "D"),
)


def curves_figure(epochs: Sequence[Mapping[str, Any]]) -> Figure:
    """The losses of Eq. 13-15, unweighted, and the shares logged with them; the prompt warm-up is shaded.

    Args:
        epochs: At least one entry of `epochs` of `results.json`.
    """
    figure = new_figure(10, 3.9)
    losses, shares = figure.subplots(1, 2)
    _draw(losses, epochs, LOSSES, 1)
    losses.set_yscale("log")
    losses.set_title("losses, mean of the epoch (log scale)", fontsize=10)
    _draw(shares, epochs, SHARES, 100)
    shares.set_title("shares, %", fontsize=10)
    shares.set_ylim(-4, 104)
    return figure


def _draw(axes: Axes, epochs: Sequence[Mapping[str, Any]], curves: Sequence[tuple], factor: float) -> None:
    numbers = range(1, len(epochs) + 1)
    for key, label, colour, marker in curves:
        points = [(number, factor * epoch[key]) for number, epoch in zip(numbers, epochs, strict=True) if key in epoch]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, label=label)
    warmup = sum("loss_adv" not in epoch for epoch in epochs)
    if warmup:
        axes.axvspan(0.5, warmup + 0.5, color="#eeeeee", zorder=0, label="prompt warm-up")
    axes.set_xlim(0.5, len(epochs) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    plain_spines(axes)
    axes.legend(frameon=False, fontsize=8.5, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))
