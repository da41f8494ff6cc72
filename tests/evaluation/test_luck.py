import math

import pytest
import torch

from peft_cbpt.evaluation.luck import drives, luck


@pytest.mark.parametrize("right, total, chance", [(0, 10, 0.3), (4, 10, 0.5), (10, 10, 0.1), (3, 40, 0.02)])
def test_luck_is_the_tail_of_the_binomial(right, total, chance):
    ways = [math.comb(total, n) * chance**n * (1 - chance) ** (total - n) for n in range(right, total + 1)]
    assert luck(right, total, chance) == pytest.approx(sum(ways), rel=1e-9)


def test_luck_of_as_many_images_as_imagenet_has():
    assert luck(25_000, 50_000, 0.5) == pytest.approx(0.5, abs=0.01)
    assert luck(49_000, 50_000, 0.001) == 0


def share(hits, n):
    return torch.arange(n) < hits


@pytest.mark.parametrize(
    "hits, without, n, expected",
    [
        (1590, 2, 1595, True),
        (4, 0, 1595, False),  # of 1 expected
        (60, 50, 1595, False),  # the target is often called anyway
        (90, 50, 1595, True),
        (5, 0, 5, True),  # few images are enough where all of them go
        (1, 0, 5, False),
        (0, 0, 5, False),
    ],
)
def test_a_trigger_drives_if_luck_does_not_explain_it(hits, without, n, expected):
    assert drives(share(hits, n), share(without, n)) == expected
