"""Before/after bars of the measured figures."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peft_cbpt.reports.style import AFTER, BEFORE, new_figure, plain_spines, short

Measurement = Mapping[str, Any]
"""`clean_accuracy` and `attacks`, as in `results.json`; shares in [0, 1]."""


def summary_figure(before: Measurement, after: Measurement) -> Figure:
    """Clean accuracy, attack success and accuracy under triggers, the latter two averaged over the triggers."""
    groups = [("clean\naccuracy", [moment["clean_accuracy"] for moment in (before, after)])]
    if before["attacks"]:
        several = f"\n(mean of {len(before['attacks'])} triggers)" if len(before["attacks"]) > 1 else ""
        for title, key in (("attack\nsuccess", "attack_success_rate"), ("accuracy\nunder trigger", "robust_accuracy")):
            means = [mean(attack[key] for attack in moment["attacks"].values()) for moment in (before, after)]
            groups.append((title + several, means))
    figure = new_figure(1.8 + 1.9 * len(groups), 3.6)
    axes = figure.subplots()
    moments = [[values[moment] for _, values in groups] for moment in (0, 1)]
    before_after_bars(axes, [title for title, _ in groups], *moments)
    axes.set_ylim(0, 110)
    figure.legend(frameon=False, ncols=2, loc="outside upper center")
    return figure


def before_after_bars(axes: Axes, labels: Sequence[str], before: Sequence[float], after: Sequence[float]) -> None:
    """Two bars for each label, of shares in [0, 1], with their figures in per cent."""
    for offset, values, colour, name in ((-0.2, before, BEFORE, "before"), (0.2, after, AFTER, "after")):
        places = [place + offset for place in range(len(labels))]
        bars = axes.bar(places, [100 * value for value in values], 0.38, color=colour, label=name)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=9)
    axes.set_xticks(range(len(labels)), labels, fontsize=9)
    axes.set_ylabel("%")
    plain_spines(axes)


def attacks_figure(before: Measurement, after: Measurement, targets: Mapping[str, str]) -> Figure:
    """Attack success and accuracy under the trigger, for each trigger by itself.

    Args:
        before: The undefended model's figures, with at least one attack.
        after: The purified model's.
        targets: The target class of each attack.
    """
    names = list(before["attacks"])
    figure = new_figure(9, 1.5 + 0.75 * len(names))
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, title, key in (
        (left, "attack success (lower is better)", "attack_success_rate"),
        (right, "accuracy under the trigger (higher is better)", "robust_accuracy"),
    ):
        values = [[100 * moment["attacks"][name][key] for name in names] for moment in (before, after)]
        _pairs_of_bars(axes, *values)
        axes.set_title(title, fontsize=10)
    labels = [f"{short(name, 18)}\n→ {short(targets[name], 18)}" for name in names]
    left.set_yticks(range(len(names)), labels, fontsize=9)
    left.invert_yaxis()
    figure.legend(*left.get_legend_handles_labels(), frameon=False, ncols=2, loc="outside upper center")
    return figure


def _pairs_of_bars(axes: Axes, before: Sequence[float], after: Sequence[float]) -> None:
    for offset, values, colour, label in ((-0.2, before, BEFORE, "before"), (0.2, after, AFTER, "after")):
        places = [place + offset for place in range(len(values))]
        bars = axes.barh(places, values, 0.38, color=colour, label=label)
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.set_xlim(0, 116)
    axes.set_xticks(range(0, 101, 25))
    axes.set_xlabel("%")
    plain_spines(axes)
