"""The outer problem on text features, in a toy world where its solution is known."""

import pytest
import torch
import torch.nn.functional as F

from peft_cbpt.features.bank import FeatureBank
from peft_cbpt.method.losses import ObjectiveWeights
from peft_cbpt.training import text_feature_solver
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


@pytest.mark.parametrize(
    "clean, robust, chosen, tried",
    [
        ({3: 0.5}, {}, 100, 4),
        ({3: 0.5}, {30: 0.2, 10: 0.4}, 10, 4),
        ({}, {30: 0.4, 10: 0.2}, 30, 5),
    ],
    ids=["costs accuracy", "gives before it costs", "gives most"],
)
def test_the_anchor_serves_held_out_images_best_and_costs_no_accuracy(monkeypatch, clean, robust, chosen, tried):
    """Features are as long here as their anchor is firm; each anchor costs clean accuracy, or gives robust."""
    monkeypatch.setattr(text_feature_solver, "solve_on", lambda problem, rows, anchor, seed: anchor * problem.start)

    def length(features):
        return round(features.norm(dim=1)[0].item())

    monkeypatch.setattr(OuterProblem, "accuracy", lambda self, features, rows: 1 - clean.get(length(features), 0.0))
    monkeypatch.setattr(
        OuterProblem, "robust_accuracy", lambda self, features, rows: robust.get(length(features), 0.0)
    )
    solution = solve(backdoored(4), 0)
    assert solution.anchor == chosen and list(solution.held_out) == list(ANCHORS[:tried])
    assert solution.undefended == (1, 0)


def test_accuracy_under_dummy_triggers_is_of_the_images_asked_for():
    problem = backdoored(2)
    assert problem.robust_accuracy(problem.start, torch.arange(2 * CLASSES)) == 0
    names = torch.eye(CLASSES, WIDTH)
    assert problem.robust_accuracy(names, torch.arange(2 * CLASSES)) == 1
    assert problem.robust_accuracy(names, torch.tensor([0, 1])) == 0  # the target's own images get no trigger


def test_with_one_shot_nothing_is_held_out():
    solution = solve(backdoored(1), 0)
    assert solution.held_out == {} and solution.undefended is None and solution.anchor == ANCHORS[0]


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
