"""What is written into contexts, and when the fit leaves off."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from peft_cbpt.training import context_fit
from peft_cbpt.training.context_fit import ContextFit, RowAdam, fit_optimizer
from peft_cbpt.training.text_feature_solver import solve_on
from tests.training.test_text_feature_solver import CLASSES, TARGET, WIDTH, backdoored, right_under_the_trigger


class Tower(nn.Module):
    """Features of a class are its context; notes which classes were asked for."""

    def __init__(self, start):
        super().__init__()
        self.start, self.context, self.asked = start, nn.Parameter(start[:, None].clone()), []

    def forward(self, classes):
        self.asked.append(classes)
        return F.normalize(self.context[:, 0] if classes is None else self.context[classes, 0], dim=1)


@pytest.fixture
def fitted():
    problem = backdoored(2)
    tower, fit = Tower(problem.start), ContextFit(problem, solve_on(problem, torch.arange(2 * CLASSES), 1.0, 0))
    fit.begin(tower, [])
    return tower, fit, fit_optimizer(tower.parameters(), torch.ones(3, 3))


def descend(fitted, steps, rate=0.1):
    tower, fit, optimizer = fitted
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * 0.95**step
        optimizer.zero_grad()
        fit.loss(tower, step).backward()
        optimizer.step()


def test_prompts_come_to_classify_as_the_goal_does(fitted):
    tower, fit, _ = fitted
    before = fit.figures(0)
    descend(fitted, 60)
    after = fit.figures(0)
    assert after["divergence"] < 0.02 * before["divergence"]
    assert right_under_the_trigger(fit.problem, fit.reached) >= 0.9 > right_under_the_trigger(fit.problem, tower.start)
    assert after["loss_bn"] < before["loss_bn"] and 1 <= after["pulled_classes"] <= CLASSES


def test_only_the_classes_with_the_gradient_are_encoded_and_moved(fitted, monkeypatch):
    tower, fit, optimizer = fitted
    monkeypatch.setattr(context_fit, "PULL", 0.5)
    descend(fitted, 1)
    assert tower.asked[1] == list(range(CLASSES)) and fit.pulled == [TARGET]  # what the trigger is taken for
    start = tower.context.detach().clone()
    optimizer.zero_grad()
    fit.loss(tower, 1).backward()
    optimizer.step()
    moved = (tower.context.detach() != start).flatten(1).any(1)
    assert tower.asked[2] == [TARGET] and moved.nonzero()[:, 0].tolist() == [TARGET]


def test_what_is_encoded_in_part_has_the_divergence_of_the_whole(fitted, monkeypatch):
    tower, fit, _ = fitted
    monkeypatch.setattr(context_fit, "PULL", 0.5)
    with torch.no_grad():
        whole = fit.problem.divergence(tower(None), fit.goal, 0)
    fit.loss(tower, 0).backward()
    assert fit.loss(tower, 1).item() == pytest.approx(whole.item(), rel=1e-5) and len(tower.asked[-1]) == 1


def test_the_fit_is_done_when_hardly_any_divergence_is_left(fitted):
    _, fit, _ = fitted
    first = fit.figures(0)["divergence"]
    logged = [{"divergence": part * first} for part in (0.5, 0.005)]
    assert not fit.is_done([]) and not fit.is_done(logged[:1]) and fit.is_done(logged)


def test_a_run_that_goes_on_after_the_fit_was_done_changes_nothing(fitted):
    tower, fit, optimizer = fitted
    again = ContextFit(fit.problem, fit.goal)
    again.begin(tower, [{"divergence": 0.0}])
    before = tower.context.detach().clone()
    again.loss(tower, 0).backward()
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
