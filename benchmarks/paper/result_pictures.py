"""Pictures of experiments: bars by attack or test set, lines over a setting."""

from collections.abc import Sequence
from statistics import mean, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.paper.result_tables import COLUMNS, Grid
from peft_cbpt.reports.style import new_figure, plain_spines

COLOURS = ("#8c8c8c", "#e69f00", "#56b4e9", "#cc79a7", "#d55e00", "#0072b2", "#009e73")
SHOWN = ("clean_accuracy", "attack_success_rate")


def bars_figure(grid: Grid, groups: Sequence[str]) -> Figure:
    """Clean accuracy and attack success, a group of bars for each column, a bar for each row, whiskers for seeds."""
    figure = new_figure(3 + 1.1 * len(groups), 6)
    for axes, column in zip(figure.subplots(2, 1, sharex=True), SHOWN, strict=True):
        width = 0.84 / len(grid)
        for place, (label, row) in enumerate(grid.items()):
            values = [[100 * one[column] for one in row[group]] for group in groups]
            places = [number + width * (place + 0.5) - 0.42 for number in range(len(groups))]
            colour = COLOURS[place % len(COLOURS)]
            _bars(axes, places, values, width, colour, label)
        axes.set_ylabel(COLUMNS[column])
        axes.set_ylim(0, 105)
        plain_spines(axes)
    axes.set_xticks(range(len(groups)), groups)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, ncols=3, loc="outside upper center", fontsize=9)
    return figure


def _bars(
    axes: Axes, places: Sequence[float], values: Sequence[Sequence[float]], width: float, colour: str, label: str
) -> None:
    there = [(place, one) for place, one in zip(places, values, strict=True) if one]
    heights, errors = [mean(one) for _, one in there], [_spread(one) for _, one in there]
    axes.bar([place for place, _ in there], heights, 0.9 * width, yerr=errors, color=colour, label=label)


def lines_figure(grid: Grid, attacks: Sequence[str]) -> Figure:
    """Clean accuracy and attack success over a setting, a line for each attack; the rows' labels are its values."""
    figure = new_figure(9, 3.8)
    for axes, column in zip(figure.subplots(1, 2), SHOWN, strict=True):
        for attack, colour in zip(attacks, COLOURS[1:] * len(attacks), strict=False):
            there = [(place, row[attack]) for place, row in enumerate(grid.values()) if row[attack]]
            values = [[100 * one[column] for one in figures] for _, figures in there]
            axes.errorbar(
                [place for place, _ in there],
                [mean(one) for one in values],
                [_spread(one) for one in values],
                marker="o",
                capsize=3,
                color=colour,
                label=attack,
            )
        axes.set_xticks(range(len(grid)), list(grid))
        axes.set_ylabel(COLUMNS[column])
        plain_spines(axes)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, ncols=4, loc="outside upper center")
    return figure


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0
