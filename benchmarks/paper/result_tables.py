"""Tables of experiments as Markdown: means and standard deviations over seeds, in per cent."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

Grid = Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]
"""By row and column the figures of every seed that is there; shares in [0, 1]."""

COLUMNS = {
    "clean_accuracy": "Clean accuracy (%)",
    "attack_success_rate": "Attack success rate (%)",
    "robust_accuracy": "Accuracy of the true class under the trigger (%)",
}
MISSING = "–"


def percent(values: Sequence[float], n_wanted: int) -> str:
    """`98.3 ± 0.2`, with how many of the wanted seeds there are if that is not all; a dash for none."""
    if not values:
        return MISSING
    text = f"{100 * mean(values):.1f}" + (f" ± {100 * stdev(values):.1f}" if len(values) > 1 else "")
    return text if len(values) == n_wanted else f"{text} ({len(values)} of {n_wanted})"


def markdown_tables(
    grid: Grid, attacks: Sequence[str], n_seeds: int, paper: Mapping[str, Sequence[Sequence[float]]]
) -> str:
    """One table for each of `COLUMNS`, rows as in `grid`, with the average over attacks where all are there.

    `paper` has the paper's [CA, ASR] in per cent by row and attack.
    """
    return "\n\n".join(
        _table(title, column, place, grid, attacks, n_seeds, paper)
        for place, (column, title) in enumerate(COLUMNS.items())
    )


def _table(
    title: str,
    column: str,
    place: int,
    grid: Grid,
    attacks: Sequence[str],
    n_seeds: int,
    paper: Mapping[str, Sequence[Sequence[float]]],
) -> str:
    lines = [[title, *attacks], ["---"] * (len(attacks) + 1)]
    for label, row in grid.items():
        values = [[one[column] for one in row[attack]] for attack in attacks]
        lines.append([label, *(percent(of_attack, n_seeds) for of_attack in values)])
        if len(attacks) > 1:
            whole = all(len(of_attack) == n_seeds for of_attack in values)
            lines[-1].append(f"{100 * mean(mean(one) for one in values):.1f}" if whole else MISSING)
    if column != "robust_accuracy":
        for label, published in paper.items():
            figures = [pair[place] for pair in published]
            lines.append([f"*paper, RN50 on ImageNet: {label}*", *(f"*{figure:.2f}*" for figure in figures)])
            if len(attacks) > 1:
                lines[-1].append(f"*{mean(figures):.2f}*")
    if len(attacks) > 1:
        lines[0].append("average")
        lines[1].append("---")
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
