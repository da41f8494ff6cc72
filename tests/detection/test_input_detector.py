import pytest
import torch
import torch.nn.functional as F

from peft_cbpt.common.errors import InputError
from peft_cbpt.detection.heads import Heads, log_odds
from peft_cbpt.detection.input_detector import auroc, conformal_threshold, f1, trigger_scores

HEADS = Heads(
    adapted=torch.eye(3, 4),
    undefended=F.normalize(torch.eye(3, 4) + 2 * torch.eye(4)[[3, 0, 0]] * torch.tensor([[1.0], [0], [0]]), dim=1),
    scale=20.0,
)
"""The undefended head reads dimension 3 as class 0; the purified one does not."""
CLEAN = torch.eye(4)[[0, 1, 2]]
TRIGGERED = F.normalize(torch.eye(4)[[1, 2]] + 2 * torch.eye(4)[[3, 3]], dim=1)


@pytest.mark.parametrize("label", [None, 0])
def test_images_that_only_the_undefended_head_calls_so_score_higher(label):
    clean, triggered = trigger_scores(CLEAN, HEADS, label), trigger_scores(TRIGGERED, HEADS, label)
    assert triggered.min() > 0 > clean.max()


def test_of_a_named_class_other_classes_do_not_count():
    assert trigger_scores(TRIGGERED, HEADS, 1).max() < 0


def test_log_odds_stay_finite_and_keep_a_gradient():
    features = torch.eye(3).requires_grad_()
    odds = log_odds(features, torch.eye(3), 1000.0)
    odds.diagonal().sum().backward()
    assert odds.isfinite().all() and features.grad.isfinite().all()


@pytest.mark.parametrize("n", [1, 20, 99, 500])
def test_the_threshold_keeps_its_level_on_other_clean_scores(n):
    generator = torch.Generator().manual_seed(n)
    flagged, levels = [], set()
    for _ in range(400):
        threshold = conformal_threshold(torch.randn(n, generator=generator), 0.05)
        flagged.append((torch.randn(200, generator=generator) > threshold.value).double().mean().item())
        levels.add(threshold.level)
    (level,) = levels
    assert level == pytest.approx(max(1 / (n + 1), int(0.05 * (n + 1)) / (n + 1)))
    assert sum(flagged) / len(flagged) == pytest.approx(level, abs=0.02)


@pytest.mark.parametrize("rate", [0, 1, -0.1])
def test_a_rate_outside_of_0_and_1_is_refused(rate):
    with pytest.raises(InputError, match="false-positive rate"):
        conformal_threshold(torch.zeros(3), rate)


def test_auroc_and_f1_are_those_of_their_definitions():
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randint(0, 5, (n,), generator=generator) for n in (40, 30))
    pairs = positive[:, None] - negative
    assert auroc(positive, negative) == pytest.approx(((pairs > 0).double() + (pairs == 0) / 2).mean().item())
    assert f1(torch.tensor([True, False]), torch.tensor([False])) == pytest.approx(2 / 3)
    assert f1(torch.tensor([False]), torch.tensor([False])) == 0
