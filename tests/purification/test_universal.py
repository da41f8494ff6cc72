import math

import pytest
import torch
import torch.nn.functional as F

from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.purification.universal import approach, collapse, universal_trigger


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
@pytest.mark.parametrize("rms", [0.02, 0.07])
def test_a_universal_trigger_raises_its_objective_within_the_budget(encoder_and_pixels, objective, rms):
    encode, pixels = encoder_and_pixels
    reach = collapse if objective == "collapse" else approach(encode(pixels)[0])
    before = pixels.clone()
    delta = universal_trigger(encode, pixels, reach, rms)
    assert delta.shape == pixels.shape[1:] and not delta.requires_grad
    assert delta.square().mean().sqrt() <= rms * (1 + 1e-5)
    assert reach(encode((pixels + delta).clamp(0, 1))) > reach(encode(pixels)) + 0.02
    assert torch.equal(pixels, before)


def test_the_start_is_scaled_to_the_budget(encoder_and_pixels):
    encode, pixels = encoder_and_pixels
    start = torch.randn(pixels.shape[1:], generator=torch.Generator().manual_seed(0))
    one, other = (universal_trigger(encode, pixels, collapse, 0.03, scale * start) for scale in (1, 50))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert one.norm() <= 0.03 * math.sqrt(one.numel()) * (1 + 1e-5)
