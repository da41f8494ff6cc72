"""Tables of experiments: what is shown of seeds, averages and gaps."""

from statistics import mean, stdev

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.paper.result_tables import markdown_tables, percent

SHARES = st.lists(st.floats(0, 1), min_size=2, max_size=5)


def figures(*rates: float) -> list[dict[str, float]]:
    return [{"clean_accuracy": 1 - rate, "attack_success_rate": rate, "robust_accuracy": 0.5} for rate in rates]


@given(SHARES)
def test_mean_and_standard_deviation(values):
    centre, spread = percent(values, len(values)).split(" ± ")
    assert abs(float(centre) - 100 * mean(values)) <= 0.0501
    assert abs(float(spread) - 100 * stdev(values)) <= 0.0501


def test_gaps_are_marked():
    assert percent([], 3) == "–"
    assert percent([0.5], 1) == "50.0"
    assert percent([0.5], 3) == "50.0 (1 of 3)"


def test_the_average_needs_every_cell():
    grid = {
        "whole": {"a": figures(0.1, 0.3), "b": figures(0.4, 0.4)},
        "gap": {"a": figures(0.1, 0.3), "b": figures(0.4)},
    }
    success = markdown_tables(grid, ["a", "b"], 2, {"Ours": [[50.0, 1.0], [60.0, 2.0]]}).split("\n\n")[1].splitlines()
    assert success[0] == "| Attack success rate (%) | a | b | average |"
    assert success[2] == "| whole | 20.0 ± 14.1 | 40.0 ± 0.0 | 30.0 |"
    assert success[3] == "| gap | 20.0 ± 14.1 | 40.0 (1 of 2) | – |"
    assert success[4] == "| *paper, RN50 on ImageNet: Ours* | *1.00* | *2.00* | *1.50* |"
