"""What is written into contexts, and when the fit leaves off."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from peft_cbpt.training.context_fit import ContextFit, RowAdam, fit_optimizer
from peft_cbpt.training.text_feature_solver import solve_on
from tests.training.test_text_feature_solver import CLASSES, WIDTH, backdoored


class Tower(nn.Module):
    """Features of a class are its context; notes which classes were asked for."""

    def __init__(self, start):
        super().__init__()
        self.context, self.asked = nn.Parameter(start[:, None].clone()), []

    def forward(self, classes):
        self.asked.append(classes)
        return F.normalize(self.context[:, 0] if classes is None else self.context[classes, 0], dim=1)


@pytest.fixture
def fitted():
    """A fit in which the goal of the last class is where it starts."""
    problem = backdoored(2)
    goal = solve_on(problem, torch.arange(2 * CLASSES), 1.0, 0)
    goal[-1] = problem.start[-1]
    tower, fit = Tower(problem.start), ContextFit(problem, goal, 1.0, 0)
    fit.begin(tower, [])
    return tower, fit, fit_optimizer(tower.parameters(), torch.ones(3, 3))


def test_prompts_come_to_have_the_goals_features(fitted):
    tower, fit, optimizer = fitted
    before = fit.figures(0)
    for step in range(100):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.95**step
        optimizer.zero_grad()
        fit.loss(tower).backward()
        optimizer.step()
    fit.look(tower)
    after = fit.figures(0)
    assert before["moving"] == CLASSES - 1 and after["moving"] == 0
    assert after["distance"] < 0.001 < before["distance"]
    assert abs(after["objective_gap"]) < 0.05 * abs(before["objective_gap"])


def test_a_class_that_is_there_is_neither_encoded_nor_moved(fitted):
    tower, fit, optimizer = fitted
    start = tower.context.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        fit.loss(tower).backward()
        optimizer.step()
    assert all(CLASSES - 1 not in asked for asked in tower.asked[1:])
    assert torch.equal(tower.context[-1], start[-1]) and not torch.equal(tower.context[0], start[0])


def test_true_outer_steps_lower_the_objective_and_leave_alone_what_arrived(fitted):
    tower, fit, optimizer = fitted
    before, start = fit.figures(0)["objective_gap"], tower.context.detach().clone()
    for step in range(20):
        optimizer.param_groups[0]["lr"] = 0.02
        optimizer.zero_grad()
        fit.outer_loss(tower, step).backward()
        optimizer.step()
    fit.look(tower)
    assert fit.figures(0)["objective_gap"] < 0.5 * before
    assert torch.equal(tower.context[-1], start[-1])


def test_the_fit_is_done_when_nothing_moves_or_no_gap_is_left(fitted):
    tower, fit, _ = fitted
    gap = fit.figures(0)["objective_gap"]
    logged = [{"objective_gap": part * gap} for part in (0.5, 0.005)]
    assert not fit.is_done(logged[:1]) and fit.is_done(logged)
    fit.reached = fit.goal.clone()
    assert fit.is_done(logged[:1])


def test_a_run_that_goes_on_after_the_fit_was_done_changes_nothing(fitted):
    tower, fit, optimizer = fitted
    again = ContextFit(fit.problem, fit.goal, 1.0, 0)
    again.begin(tower, [{"objective_gap": 0.0}])
    before = tower.context.detach().clone()
    again.loss(tower).backward()
    optimizer.step()
    assert torch.equal(tower.context, before)


def test_rows_without_a_gradient_keep_still_where_adam_would_go_on():
    learned = nn.Parameter(torch.zeros(3, 2, WIDTH))
    optimizer = RowAdam([learned], lr=0.1)
    for rows in ([0, 1], [1]):
        optimizer.zero_grad()
        learned[rows].sum().backward()
        optimizer.step()
    moved = learned.detach().abs().amax((1, 2))
    assert moved[2] == 0 and moved[0] == pytest.approx(0.1, rel=1e-3) and moved[1] > 0.15
