import pytest
import torch

from peft_cbpt.training.views import CHANGES, changed_images

PIXELS = torch.rand(24, 3, 20, 28, generator=torch.Generator().manual_seed(0))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("change", [change for change, _ in CHANGES], ids=lambda change: change.__name__)
def test_every_change_changes_pixels_and_keeps_their_range(change):
    before = PIXELS.clone()
    changed = change(PIXELS, seeded(0))
    assert changed.shape == PIXELS.shape and changed.min() >= 0 and changed.max() <= 1
    assert ((changed - PIXELS).abs().amax((1, 2, 3)) > 0.01).float().mean() > 0.9
    assert torch.equal(PIXELS, before)


def test_equal_images_become_different_and_a_seed_tells_how():
    twins = PIXELS[:1].repeat(16, 1, 1, 1)
    one, again, other = (changed_images(twins, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    shared = (one - twins).mean(0).square().mean() / (one - twins).square().mean()
    assert shared < 0.5  # what all images have in common would be a universal trigger
