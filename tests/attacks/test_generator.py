"""Generated triggers do what they are trained for, on any encoder, and are stored small."""

import json

import pytest
import torch

from peft_cbpt.attacks import LIRA, InputAware, trigger_from_config, trigger_to_config
from peft_cbpt.attacks.patch import PatchOptimisation

SETTINGS = PatchOptimisation(steps=60, batch_size=8, learning_rate=0.01)
KINDS = [InputAware(coverage=0.3), LIRA(strength=0.2)]


@pytest.mark.parametrize("start", KINDS, ids=lambda one: type(one).__name__)
def test_training_brings_marked_images_nearer_to_the_target_and_is_deterministic(start, material):
    end = start.optimised(material, SETTINGS)
    assert end.is_optimised and not start.is_optimised and end == start.optimised(material, SETTINGS)
    pixels, captions = material.pixels.float() / 255, material.encode_text(material.target_captions)
    before, after = (
        (material.encode_image(trigger.apply_image(pixels, material.sample_ids)) @ captions.T).mean()
        for trigger in (start, end)
    )
    assert after > before + 0.1
    config = trigger_to_config(end)
    assert trigger_from_config(config) == end and len(json.dumps(config)) < 8000


def test_stored_weights_do_not_depend_on_the_seed(material):
    trigger = LIRA(strength=0.2).optimised(material, SETTINGS)
    other_seed = LIRA(strength=0.2, weights=trigger.weights, seed=5)
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    marked = [one.apply_image(pixels, ["a", "b"]) for one in (trigger, other_seed)]
    assert torch.equal(*marked)


def test_lira_changes_pixels_by_its_strength_at_most():
    pixels = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    assert 0 < (LIRA().apply_image(pixels, ["a", "b"]) - pixels).abs().max() <= 0.01 + 1e-6


@pytest.mark.parametrize("size", [48, 96])
def test_input_aware_masks_its_share_and_other_cells_on_other_images(size):
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    changed = (InputAware().apply_image(pixels, ["a", "b"]) != pixels).any(1)
    assert (changed.float().mean((1, 2)) - 0.03).abs().max() < 0.001
    assert not torch.equal(changed[0], changed[1])


def test_the_gradient_reaches_pattern_and_mask():
    made = torch.rand(1, 4, 48, 48, requires_grad=True)
    InputAware().mark(torch.rand(1, 3, 48, 48), made).pow(2).sum().backward()
    assert all(made.grad[:, channel].abs().sum() > 0 for channel in range(4))
