import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from peft_cbpt.clip.loading import load_clip
from peft_cbpt.clip.pixels import PixelNormalizer, image_encoder, unit_pixels
from peft_cbpt.common.errors import InputError
from peft_cbpt.data.decoding import read_image
from peft_cbpt.pocket.model import resolve_model
from peft_cbpt.tuner import CBPTConfig, CBPTModel
from peft_cbpt.tuner.fingerprint import weights_fingerprint


def test_normalising_pixels_equals_the_image_processor(poisoned_clip, few_shots):
    row = few_shots.dataset[0]
    image = read_image(row["image"], row["sample_id"])
    expected = poisoned_clip.image_processor(image, return_tensors="pt").pixel_values
    ours = poisoned_clip.normalize(few_shots[0]["pixel_values"][None].float() / 255)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_the_encoder_gives_unit_features_with_a_gradient_to_pixels(poisoned_clip):
    encode_image = image_encoder(poisoned_clip.model, PixelNormalizer())
    pixels = torch.rand(2, 3, 48, 48, requires_grad=True)
    features = encode_image(pixels)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    features[:, 0].sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0


@torch.no_grad()
def test_normalised_pixels_are_refused(poisoned_clip, few_shots):
    pixels = unit_pixels(few_shots[0]["pixel_values"][None])
    assert 0 <= pixels.min() < pixels.max() <= 1
    for enter in (image_encoder(poisoned_clip.model, poisoned_clip.normalize), unit_pixels):
        enter(pixels)
        for wrong in (poisoned_clip.normalize(pixels), pixels * 255, pixels * float("nan")):
            with pytest.raises(InputError, match=r"pixels are in \[0, 1\], but these are in .*happens inside"):
                enter(wrong)


def test_the_fingerprint_names_the_weights_only(poisoned_clip, tmp_path):
    model = poisoned_clip.model
    fingerprint = weights_fingerprint(model)
    half = AutoModel.from_pretrained(resolve_model("pocket:badnet"), dtype=torch.float16)
    assert weights_fingerprint(half) == fingerprint
    half.save_pretrained(tmp_path, max_shard_size="500KB")
    assert weights_fingerprint(AutoModel.from_pretrained(tmp_path)) == fingerprint
    assert weights_fingerprint(load_clip(resolve_model("pocket:clean")).model) != fingerprint
    CBPTModel(model, CBPTConfig(class_names=["dog", "cat"]).tokenize(poisoned_clip.tokenizer), "default")
    assert weights_fingerprint(model) == fingerprint
    with torch.no_grad():
        model.logit_scale += 1e-3
    assert weights_fingerprint(model) != fingerprint


@pytest.fixture
def copy(tmp_path):
    """A copy of a pocket CLIP to spoil."""
    return shutil.copytree(resolve_model("pocket:clean"), tmp_path / "clip")


def drop_weights(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["logit_scale"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def spoil_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["logit_scale"] = torch.tensor(float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut_weights(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def other_model_type(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))


DAMAGE = {
    "no folder": (lambda folder: shutil.rmtree(folder), "no folder"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "cannot load"),
    "half a file": (cut_weights, "cannot load"),
    "not safetensors": (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04pickle"), "cannot load"),
    "a weight missing": (drop_weights, "lacks 1 weights, such as logit_scale"),
    "a weight not finite": (spoil_weights, "logit_scale .* not finite"),
    "not a CLIP": (other_model_type, "not a CLIP"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoints_are_refused(copy, damage):
    spoil, message = DAMAGE[damage]
    spoil(copy)
    with pytest.raises(InputError, match=message) as raised:
        load_clip(str(copy))
    assert "\n" not in str(raised.value)
