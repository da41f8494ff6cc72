import pytest
import torch
import torch.nn.functional as F

from peft_cbpt.training.encoder_losses import moved, strayed

FEATURES = F.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), dim=1)
OWN = torch.eye(6, dtype=torch.bool)


def test_moved_is_one_less_the_cosine():
    assert moved(FEATURES, FEATURES).item() == pytest.approx(0, abs=1e-6)
    assert moved(-FEATURES, FEATURES).item() == pytest.approx(2)


def test_strayed_is_the_divergence_of_the_neighbours_without_the_image_itself():
    others = FEATURES.roll(1, 0)
    assert strayed(FEATURES, FEATURES, FEATURES, OWN, 20).item() == pytest.approx(0, abs=1e-6)
    p, q = ((20 * of @ FEATURES.T).masked_fill(OWN, float("-inf")).softmax(1)[~OWN] for of in (FEATURES, others))
    expected = (p * (p / q).log()).sum() / 6
    torch.testing.assert_close(strayed(others, FEATURES, FEATURES, OWN, 20), expected)


def test_neighbours_that_are_kept_leave_no_gradient_however_far_the_feature():
    """A feature may lose what no image of the bank has, without a pull back."""
    bank = F.pad(FEATURES[:, :7], (0, 1))
    lost = torch.cat([torch.zeros(6, 7), torch.ones(6, 1)], 1)
    features = (FEATURES + 3 * lost).requires_grad_()
    strayed(features, FEATURES, bank, OWN, 20).backward()
    assert features.grad.abs().max() < 1e-5
