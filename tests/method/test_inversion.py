import math

import pytest
import torch

from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.method.inversion import InversionSettings, contrastive_inversion_loss, invert_triggers

SETTINGS = {
    "paper": InversionSettings(),
    "l0": InversionSettings(norm=0, epsilon=40, lr=10, step_rule="raw"),
    "l1": InversionSettings(norm=1, epsilon=20, lr=5, step_rule="normalized"),
    "l2": InversionSettings(norm=2, epsilon=1.0, lr=0.2, step_rule="normalized"),
    "linf": InversionSettings(norm=math.inf, epsilon=6 / 255, lr=2 / 255, step_rule="sign"),
}


@pytest.fixture
def inner(poisoned_clip, few_shots):
    """The arguments of an inversion that pulls every image towards the next class."""
    encode_image = image_encoder(poisoned_clip.model.requires_grad_(False), poisoned_clip.normalize)
    pixels = torch.stack([few_shots[row]["pixel_values"] for row in range(len(few_shots))]).float() / 255
    with torch.no_grad():
        features = encode_image(pixels)
    return encode_image, pixels, features.roll(-3, 0), features


@pytest.mark.parametrize("name", SETTINGS)
def test_inversion_lowers_the_loss_within_budget_and_range(inner, name):
    encode_image, pixels, positives, negatives = inner
    settings = SETTINGS[name]
    untouched = pixels.clone()
    delta = invert_triggers(encode_image, pixels, positives, negatives, settings)
    assert torch.equal(pixels, untouched) and not delta.requires_grad
    perturbed = pixels + delta
    assert perturbed.min() >= 0 and perturbed.max() <= 1
    if settings.norm == 0:
        assert ((delta.abs().sum(1) > 0).flatten(1).sum(1) <= settings.epsilon).all()
    else:
        assert (delta.flatten(1).norm(p=settings.norm, dim=1) <= settings.epsilon * 1.0001).all()
    with torch.no_grad():
        before = contrastive_inversion_loss(negatives, positives, negatives)
        after = contrastive_inversion_loss(encode_image(perturbed), positives, negatives)
    assert after.mean() < before.mean()


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_result_does_not_depend_on_the_batch(inner, name, batch_size):
    encode_image, pixels, positives, negatives = inner
    together = invert_triggers(encode_image, pixels, positives, negatives, SETTINGS[name])
    parts = zip(pixels.split(batch_size), positives.split(batch_size), negatives.split(batch_size), strict=True)
    apart = torch.cat([invert_triggers(encode_image, *part, SETTINGS[name]) for part in parts])
    with torch.no_grad():
        torch.testing.assert_close(encode_image(pixels + together), encode_image(pixels + apart), rtol=0, atol=1e-5)


def test_no_weight_gets_a_gradient(poisoned_clip, inner):
    poisoned_clip.model.requires_grad_(True)
    encode_image, pixels, positives, negatives = inner
    invert_triggers(encode_image, pixels[:2], positives[:2], negatives[:2], SETTINGS["linf"])
    assert all(parameter.grad is None for parameter in poisoned_clip.model.parameters())


BAD_SETTINGS = [
    ({"norm": 3}, "0, 1, 2 and inf"),
    ({"epsilon": -1}, "positive budget"),
    ({"epsilon": math.nan}, "positive budget"),
    ({"norm": 0, "epsilon": 0.5}, "number of pixels"),
    ({"steps": 0}, "at least 1"),
    ({"lr": 0}, "positive"),
    ({"step_rule": "adam"}, "raw, normalized or sign"),
]


@pytest.mark.parametrize("settings, message", BAD_SETTINGS)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        InversionSettings(**settings)
