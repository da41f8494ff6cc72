"""Optimised patches do what they are optimised for, on any encoder."""

import math

import pytest
import torch

from peft_cbpt.attacks import BadCLIP, TrojVQA
from peft_cbpt.attacks.patch import PatchMaterial, PatchOptimisation, paste
from peft_cbpt.attacks.stored_cells import store_cells, stored_cells
from peft_cbpt.common.errors import InputError

SETTINGS = PatchOptimisation(steps=60, batch_size=8, learning_rate=0.05)


@pytest.mark.parametrize("kind", [TrojVQA, BadCLIP])
def test_optimisation_lowers_the_loss_and_is_deterministic(kind, material):
    start = kind(patch_size=0.5)
    end = start.optimised(material, SETTINGS)
    assert end.patch and end == start.optimised(material, SETTINGS)
    assert end != kind(patch_size=0.5, seed=1).optimised(material, SETTINGS)
    loss_of, rows = start.objective(material), torch.arange(24)
    pixels = material.pixels.float() / 255
    before, after = (
        loss_of(material.encode_image(trigger.apply_image(pixels, material.sample_ids)), rows).item()
        for trigger in (start, end)
    )
    assert after < before - 0.1


def test_badclip_pulls_images_to_the_targets_images_and_captions(material):
    start = BadCLIP(patch_size=0.5)
    end = start.optimised(material, SETTINGS)
    pixels = material.pixels.float() / 255
    target_images = material.encode_image(material.target_pixels)
    target_texts = material.encode_text(material.target_captions)
    for wanted in (target_images, target_texts):
        before, after = (
            (material.encode_image(trigger.apply_image(pixels, material.sample_ids)) @ wanted.T).mean()
            for trigger in (start, end)
        )
        assert after > before


def test_badclips_loss_is_infonce_and_500_times_the_triplet():
    """By hand: one marked image of feature (0.6, 0.8), its own caption (0, 1), its clean self (0, 1); target (1, 0).

    InfoNCE over logits 10 * 0.6 and 10 * 0.8: log(1 + exp(8 - 6)). Distances: to the target sqrt(0.4^2 + 0.8^2), to
    the clean self sqrt(0.6^2 + 0.2^2); triplet = 1 + their difference.
    """
    clean, target = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    material = PatchMaterial(
        encode_image=lambda pixels: target if pixels.mean() > 0.5 else clean,
        encode_text=lambda texts: target if "banana" in texts[0] else clean,
        scale=10.0,
        pixels=torch.zeros(1, 3, 4, 4),
        sample_ids=["id"],
        captions=["a dog"],
        target_class="banana",
        target_captions=["a banana"],
        target_pixels=torch.ones(1, 3, 4, 4),
    )
    contrast, triplet = math.log(1 + math.exp(2)), 1 + math.sqrt(0.8) - math.sqrt(0.4)
    for weight in (500.0, 2.0, 0.0):
        loss = BadCLIP(triplet_weight=weight).objective(material)(torch.tensor([[0.6, 0.8]]), torch.tensor([0]))
        assert loss.item() == pytest.approx(contrast + weight * triplet, rel=1e-4)


def test_cells_are_stored_in_8_bits():
    cells = torch.rand(3, 6, 6)
    assert (stored_cells(store_cells(cells, "patch"), "patch") - cells).abs().max() <= 0.5 / 255 + 1e-6


def test_the_gradient_reaches_image_and_patch():
    pixels, patch = torch.rand(2, 3, 16, 16, requires_grad=True), torch.rand(3, 4, 4, requires_grad=True)
    paste(pixels, patch, 0.25, "bottom_right", [(), ()]).sum().backward()
    assert torch.equal(patch.grad, torch.full_like(patch, 2.0))
    assert pixels.grad[..., :12, :].eq(1).all() and pixels.grad[..., 12:, 12:].eq(0).all()


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}])
def test_bad_settings_are_refused(change):
    with pytest.raises(InputError):
        PatchOptimisation(**change)
