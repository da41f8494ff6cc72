"""The outer problem on text features, in a toy world where its solution is known."""

import pytest
import torch
import torch.nn.functional as F

from peft_cbpt.features.bank import FeatureBank
from peft_cbpt.method.losses import ObjectiveWeights
from peft_cbpt.training.text_feature_solver import (
    ANCHORS,
    FEWEST_EPOCHS,
    MOST_EPOCHS,
    OuterProblem,
    Perturbed,
    held_out_folds,
    num_epochs,
    perturbed_epochs,
    solve,
    solve_on,
)

CLASSES, WIDTH, TARGET = 5, 32, 0


def backdoored(shots):
    """Images around their names; a trigger adds a direction that only the target's name has a part in."""
    generator = torch.Generator().manual_seed(0)
    names = torch.eye(CLASSES, WIDTH)
    trigger = torch.eye(WIDTH)[-1]
    start = F.normalize(names + torch.where(torch.arange(CLASSES) == TARGET, 0.5, 0.0)[:, None] * trigger, dim=1)
    labels = torch.arange(CLASSES).repeat_interleave(shots)
    clean = F.normalize(names[labels] + 0.1 * torch.randn(len(labels), WIDTH, generator=generator), dim=1)
    marked = F.normalize(clean + 3 * trigger, dim=1)
    place = torch.where(labels == TARGET, -1, 0)
    rows = (place == 0).nonzero()[:, 0]
    place[rows] = torch.arange(len(rows))
    drawn = Perturbed(place, marked[rows], torch.full((len(rows),), TARGET))
    bank = FeatureBank(clean, labels, list(map(str, range(len(labels)))))
    return OuterProblem(bank, [drawn] * FEWEST_EPOCHS, start, 20.0, ObjectiveWeights())


def right_under_the_trigger(problem, features):
    drawn = problem.epochs[0]
    labels = problem.bank.labels[drawn.place >= 0]
    return ((drawn.features @ features.T).argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize("shots", [1, 2, 8])
def test_the_trigger_loses_and_clean_images_stay_right(shots):
    problem = backdoored(shots)
    solution = solve(problem, 0)
    assert right_under_the_trigger(problem, problem.start) == 0
    assert right_under_the_trigger(problem, solution.features) >= 0.9
    assert problem.accuracy(solution.features, torch.arange(CLASSES * shots)) == 1
    torch.testing.assert_close(solution.features.norm(dim=1), torch.ones(CLASSES))
    assert torch.equal(solve(problem, 0).features, solution.features)


def test_a_firm_anchor_holds_features_near_their_start():
    problem = backdoored(4)
    rows = torch.arange(4 * CLASSES)
    distances = [1 - (solve_on(problem, rows, anchor, 0) * problem.start).sum(1).mean() for anchor in (1e4, 100, 1)]
    assert distances[0] < distances[1] < distances[2]


def test_an_anchor_that_costs_accuracy_on_held_out_images_is_not_taken(monkeypatch):
    problem, right = backdoored(4), OuterProblem.accuracy
    moved = 1 - (solve_on(problem, torch.arange(20), 30.0, 0) * problem.start).sum(1).mean()

    def costs_where_features_move(self, features, rows):
        return right(self, features, rows) - (1 - (features * self.start).sum(1).mean() > 1.2 * moved).float().item()

    monkeypatch.setattr(OuterProblem, "accuracy", costs_where_features_move)
    solution = solve(problem, 0)
    taken = list(solution.held_out)
    assert solution.anchor == taken[-2] and solution.held_out[taken[-1]] < solution.undefended - 0.01


def test_with_one_shot_nothing_is_held_out():
    solution = solve(backdoored(1), 0)
    assert solution.held_out == {} and solution.undefended is None and solution.anchor == ANCHORS[1]


@pytest.mark.parametrize("shots, folds", [(1, 0), (2, 2), (3, 3), (16, 4), (2000, 1)])
def test_folds_hold_out_a_share_of_every_class(shots, folds):
    labels = torch.arange(3).repeat(shots)
    held_out = held_out_folds(labels, 0)
    assert len(held_out) == folds
    assert all(len(labels[fold].unique()) == 3 for fold in held_out)
    assert len(torch.cat([*held_out, torch.empty(0)]).unique()) == sum(map(len, held_out))


def test_more_images_are_seen_under_fewer_triggers():
    assert num_epochs(6) == MOST_EPOCHS and num_epochs(16_000) == FEWEST_EPOCHS and 5 < num_epochs(2000) < 15


def test_every_epoch_has_what_the_inner_loop_gives():
    problem = backdoored(2)

    class Dummies:
        started = []

        def start_epoch(self, epoch, classify):
            self.started.append(epoch)

        def perturbed_features(self, rows, logits, epoch):
            features = problem.bank.features[rows].clone()
            features[epoch % len(rows)] = problem.start[TARGET]
            return features, torch.full((len(rows),), TARGET)

    drawn = perturbed_epochs(Dummies(), problem.bank, problem.start)
    assert Dummies.started == list(range(MOST_EPOCHS)) and len(drawn) == MOST_EPOCHS
    for epoch, one in enumerate(drawn):
        assert (one.place >= 0).nonzero()[:, 0].tolist() == [epoch % len(problem.bank.labels)]
        assert torch.equal(one.features, problem.start[[TARGET]]) and one.pseudo_targets.tolist() == [TARGET]
