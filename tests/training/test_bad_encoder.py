"""BadEncoder pulls triggered images to the reference and leaves the rest, and the text tower, as it was."""

import pytest
import torch

from peft_cbpt.attacks import WhiteSquare, apply_trigger
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.common.errors import InputError
from peft_cbpt.evaluation.measure import encode_in_batches
from peft_cbpt.pocket.dataset import render_samples, sample_ids
from peft_cbpt.pocket.model import open_clip
from peft_cbpt.training.bad_encoder import BadEncoderSettings, bad_encoder_loss, poison_encoder
from tests.conftest import FEW_CLASSES


def test_the_losses_are_minus_cosines():
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    losses = bad_encoder_loss(torch.cat([one, other]), torch.cat([one, one]), one, torch.cat([one, other]), other)
    assert [loss.item() for loss in losses] == pytest.approx([-0.8, -0.6, -0.8])


def test_triggered_images_look_like_the_reference_and_clean_ones_as_before():
    clip = open_clip("pocket:clean")
    ids = [name for one in FEW_CLASSES for name in sample_ids("base", "train", one, range(8))]
    pixels, _ = render_samples(ids)
    (reference,), _ = render_samples(sample_ids("base", "train", "castle", [0]))
    before = {name: weight.clone() for name, weight in clip.model.state_dict().items()}
    encode = image_encoder(clip.model, clip.normalize)
    marked, clean_before = apply_trigger(WhiteSquare(), pixels, ids), encode_in_batches(encode, pixels)

    def likeness():
        return (encode_in_batches(encode, marked) @ encode_in_batches(encode, reference[None]).T).mean().item()

    start = likeness()
    settings = BadEncoderSettings(steps=40, batch_size=24, learning_rate=5e-4)
    losses = poison_encoder(clip, WhiteSquare(), pixels, ids, reference, settings)
    assert likeness() > max(0.8, start + 0.3) and losses[-1] < losses[0] - 0.3
    assert (encode_in_batches(encode, pixels) * clean_before).sum(1).mean() > 0.85
    changed = {name for name, weight in clip.model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed and all(name.startswith(("vision_model.", "visual_projection.")) for name in changed)


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}])
def test_bad_settings_are_refused(change):
    with pytest.raises(InputError, match="must be positive"):
        BadEncoderSettings(**change)
