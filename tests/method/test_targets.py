import pytest
import torch

from peft_cbpt.method.targets import choose_positives, runner_up


def test_the_runner_up_is_never_the_label():
    logits = torch.tensor([[3.0, 2, 1], [3, 2, 1], [1, 1, 5]])
    assert runner_up(logits, torch.tensor([0, 1, 2])).tolist() == [1, 0, 0]


@pytest.fixture
def bank():
    angles = torch.tensor([0.0, 0.1, 0.5, 1.0, 1.5, 0.2])
    features = torch.stack([angles.cos(), angles.sin()], 1)
    return features, torch.tensor([0, 0, 1, 1, 1, 2]), [f"id{row}" for row in range(6)]


@pytest.mark.parametrize("rule, expected", [("farthest", 4), ("closest", 2)])
def test_positives_by_distance_to_the_own_embedding(bank, rule, expected):
    chosen = choose_positives(rule, torch.tensor([0]), torch.tensor([1]), *bank, seed=0)
    assert chosen.tolist() == [expected]


def test_a_sample_is_never_its_own_positive(bank):
    assert choose_positives("closest", torch.tensor([0]), torch.tensor([0]), *bank, seed=0).tolist() == [1]


def test_random_positives_depend_on_seed_and_sample_only(bank):
    rows, targets = torch.tensor([0, 1, 5]), torch.tensor([1, 1, 1])
    together = choose_positives("random", rows, targets, *bank, seed=3)
    alone = [choose_positives("random", rows[i : i + 1], targets[i : i + 1], *bank, seed=3).item() for i in range(3)]
    assert together.tolist() == alone and set(alone) <= {2, 3, 4}
    seeds = {tuple(choose_positives("random", rows, targets, *bank, seed=seed).tolist()) for seed in range(20)}
    assert len(seeds) > 3
