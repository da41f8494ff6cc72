import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_cbpt.method.losses import ObjectiveWeights, l_adv, l_align, l_bn, purification_objective


@st.composite
def batches(draw):
    n, classes = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    clean, perturbed = (torch.randn(n, classes, generator=generator, dtype=torch.float64) * 5 for _ in range(2))
    labels = torch.randint(classes, (n,), generator=generator)
    pseudo_targets = (labels + 1 + torch.randint(classes - 1, (n,), generator=generator)) % classes
    return clean, perturbed, labels, pseudo_targets


def confidence(logits, classes):
    """f(v; y) of Eq. 12, written out."""
    exponentials = logits.exp()
    return torch.stack([row[c] / row.sum() for row, c in zip(exponentials, classes, strict=True)])


@settings(max_examples=50, deadline=None)
@given(batches())
def test_losses_are_the_papers_formulas(batch):
    clean, perturbed, labels, pseudo_targets = batch
    f_clean, f_perturbed = confidence(clean, labels), confidence(perturbed, labels)
    torch.testing.assert_close(l_bn(clean, perturbed, labels, 0.7), (-f_clean.log() - 0.7 * f_perturbed.log()).mean())
    torch.testing.assert_close(
        l_adv(perturbed, pseudo_targets), -(1 - confidence(perturbed, pseudo_targets)).log().mean()
    )
    squares = (clean.softmax(1) - perturbed.softmax(1)).square().mean(1)
    torch.testing.assert_close(l_align(clean, perturbed, labels), (f_clean * squares).mean())


@settings(max_examples=20, deadline=None)
@given(batches())
def test_the_objective_is_the_weighted_sum(batch):
    weights = ObjectiveWeights(lambda_bn=2.0, lambda_adv=0.3, lambda_align=0.5, alpha=0.1)
    total, parts = purification_objective(*batch, weights)
    torch.testing.assert_close(total, 2 * parts["loss_bn"] + 0.3 * parts["loss_adv"] + 0.5 * parts["loss_align"])


def test_l_adv_stays_finite_when_the_pseudo_target_is_certain():
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss = l_adv(logits, torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(200 - math.log(2)) and torch.isfinite(logits.grad).all()


def test_the_weight_of_l_align_gets_no_gradient():
    perturbed = torch.zeros(1, 2)
    clean = torch.tensor([[1.0, -1.0]], requires_grad=True)
    labels = torch.tensor([0])
    (gradient,) = torch.autograd.grad(l_align(clean, perturbed, labels), clean)
    distance = (clean.softmax(1) - 0.5).square().mean(1)
    (expected,) = torch.autograd.grad(clean.detach().softmax(1)[0, 0] * distance.sum(), clean)
    torch.testing.assert_close(gradient, expected)


def test_warm_up_sees_clean_images_only():
    clean, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(l_bn(clean, None, labels, 1.0), torch.nn.functional.cross_entropy(clean, labels))
