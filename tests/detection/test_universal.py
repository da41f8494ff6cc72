import math

import pytest
import torch
import torch.nn.functional as F

from peft_cbpt.attacks import SIG
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.detection.universal import Budget, approach, collapse, universal_trigger


@pytest.fixture
def encoder_and_pixels(poisoned_clip, few_shots):
    poisoned_clip.model.requires_grad_(False)
    pixels = torch.stack([few_shots[row]["pixel_values"] for row in range(6)]).float() / 255
    return image_encoder(poisoned_clip.model, poisoned_clip.normalize), pixels


def test_collapse_is_the_mean_cosine_of_all_pairs():
    features = F.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    torch.testing.assert_close(collapse(features), (features @ features.T).mean())
    assert collapse(features[:1].expand(4, -1)).item() == pytest.approx(1)


@pytest.mark.parametrize("objective", ["collapse", "approach"])
@pytest.mark.parametrize("budget", [Budget(0.02), Budget(0.07), Budget(0.12, pattern=True)])
def test_a_universal_trigger_raises_its_objective_within_the_budget(encoder_and_pixels, objective, budget):
    encode, pixels = encoder_and_pixels
    reach = collapse if objective == "collapse" else approach(encode(pixels)[0])
    before = pixels.clone()
    delta = universal_trigger(encode, pixels, reach, budget)
    assert delta.shape == pixels.shape[1:] and not delta.requires_grad
    assert delta.square().mean().sqrt() <= budget.rms * (1 + 1e-5)
    torch.testing.assert_close(budget.part_of(delta), delta, rtol=0, atol=1e-5)
    assert reach(encode((pixels + delta).clamp(0, 1))) > reach(encode(pixels)) + 0.02
    assert torch.equal(pixels, before)


def test_the_start_is_scaled_to_the_budget(encoder_and_pixels):
    encode, pixels = encoder_and_pixels
    start = torch.randn(pixels.shape[1:], generator=torch.Generator().manual_seed(0))
    one, other = (universal_trigger(encode, pixels, collapse, Budget(0.03), scale * start) for scale in (1, 50))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert one.norm() <= 0.03 * math.sqrt(one.numel()) * (1 + 1e-5)


@pytest.mark.parametrize("size", [(48, 48), (224, 160), (8, 12)])
def test_a_pattern_is_grey_and_coarse(size):
    pattern = Budget(0.1, pattern=True)
    delta = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    part = pattern.part_of(delta)
    assert torch.equal(part[0], part[1]) and torch.equal(part[1], part[2])
    torch.testing.assert_close(pattern.part_of(part), part, rtol=0, atol=1e-4)
    torch.testing.assert_close((part * (delta - part)).sum(), torch.tensor(0.0), rtol=0, atol=1e-2)
    assert torch.equal(Budget(0.1).part_of(delta), delta)


def test_the_wave_of_sig_is_a_pattern_and_a_checkerboard_is_none():
    grey = torch.full((1, 3, 48, 48), 0.5)
    wave = SIG(seed=3).apply_image(grey, ["0"])[0] - 0.5
    checkerboard = (torch.arange(48)[:, None] + torch.arange(48)).remainder(2).mul(2).sub(1).expand(3, -1, -1).float()
    kept = [Budget(0.1, pattern=True).part_of(one).norm() / one.norm() for one in (wave, checkerboard)]
    assert kept[0] > 0.95 and kept[1] < 0.1
