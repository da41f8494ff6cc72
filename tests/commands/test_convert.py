"""`peft-cbpt convert`, on tiny checkpoints laid out as people publish them."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from peft_cbpt.cli import main
from peft_cbpt.clip.loading import load_clip
from peft_cbpt.convert.convert import OPENAI_FILE, build_model, checkpoint_of
from peft_cbpt.convert.layout import to_transformers
from tests.convert.forms import (
    REFUSED,
    TOKENIZER,
    Marker,
    beside,
    open_clip,
    safe,
    save_torchscript,
    timm_files,
    transformers,
)
from tests.convert.published_clips import TINY, tiny_weights
from tests.convert.reference import feature_difference


def openai_archive(weights, folder):
    half = {name: value.half() if value.ndim > 1 else value for name, value in weights.items()}
    bookkeeping = {name: torch.tensor(77) for name in ("input_resolution", "context_length", "vocab_size")}
    save_torchscript(half | bookkeeping, folder / "clip.pt")
    return folder / "clip.pt"


def pickled_training_checkpoint(weights, folder):
    torch.save({"state_dict": weights, "where": Marker(folder / "log")}, folder / "epoch_5.pt")
    return folder / "epoch_5.pt"


def bare_transformers_folder(weights, folder):
    build_model(checkpoint_of(weights, "gelu")).save_pretrained(folder, max_shard_size="100KB")
    return folder


IMAGES = {"mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear", "resize_mode": "squash"}
SQUASHED = "OpenCLIP folder with squashed images"
PUBLISHED = {
    "OpenAI": (openai_archive, "quick_gelu", ["--allow-unsafe"]),
    "pickled": (pickled_training_checkpoint, "quick_gelu", ["--allow-unsafe"]),
    "OpenCLIP file": (safe("open_clip_model.safetensors"), "gelu", ["--activation", "gelu"]),
    SQUASHED: (beside(open_clip(IMAGES, quick_gelu=True), timm_files), "quick_gelu", []),
    "transformers folder": (transformers(pickle=True), "gelu", []),
    "transformers weights and config": (bare_transformers_folder, "gelu", []),
}
ASSUMED = PUBLISHED.keys() - {SQUASHED, "transformers folder"}


def convert(*words):
    return main(["convert", *map(str, words), "--tokenizer", TOKENIZER])


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_checkpoints_become_folders(kind, name, tmp_path, capsys):
    publish, activation, options = PUBLISHED[kind]
    weights = tiny_weights(name)
    (tmp_path / "in").mkdir()
    source = publish(weights, tmp_path / "in")
    assert convert(source, "--output_dir", tmp_path / "out", *options) == 0
    said = capsys.readouterr().out
    assert name.split("-")[1] in said.lower() and f"activation {activation}" in said
    assert ("nothing says how images" in said) == (kind in ASSUMED)
    clip = load_clip(str(tmp_path / "out"))
    assert clip.model.config.text_config.hidden_act == activation and clip.model.config.model_type.startswith("clip")
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []
    if kind == SQUASHED:
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8))
        side = clip.model.config.vision_config.image_size
        squashed = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
        pixels = clip.image_processor(image, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
        np.testing.assert_allclose(pixels, squashed / 255, atol=1e-6)
    half = {name: value.half().float() if value.ndim > 1 else value for name, value in weights.items()}
    assert feature_difference(half if kind == "OpenAI" else weights, clip.model) < 1e-4
    if kind != "OpenAI":
        expected = build_model(checkpoint_of(weights, activation)).state_dict()
        for key, value in clip.model.state_dict().items():
            assert torch.equal(value, expected[key]), key
    assert convert(tmp_path / "out", "--output_dir", tmp_path / "back", "--to", "openai") == 0
    back = load_file(tmp_path / "back" / OPENAI_FILE)
    assert back.keys() == {key for key in weights if not key.endswith("num_batches_tracked")}
    for key, value in back.items():
        torch.testing.assert_close(value, weights[key], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "kind",
    ["OpenAI's archive", "half a file", "a missing weight", "not finite", "another vocabulary", "BERT", "a CoCa"],
)
def test_bad_checkpoints_are_refused_and_nothing_is_left(kind, tmp_path, capsys):
    publish, message = REFUSED[kind]
    (tmp_path / "in").mkdir()
    source = publish(tiny_weights("tiny-vit"), tmp_path / "in")
    assert convert(source, "--output_dir", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and said.count("error:") == 1, said
    assert {file.name for file in tmp_path.iterdir()} == {"in"}


def test_a_full_output_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    assert convert(tmp_path / "source", "--output_dir", tmp_path / "out") == 2
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "out" / "thesis.txt").read_text() == "precious"


def test_a_wrong_conversion_would_be_noticed(monkeypatch):
    """Swapping two weights on the way makes the features differ from the reference's."""
    weights = tiny_weights("tiny-vit")

    def swapped(state):
        renamed = to_transformers(state)
        q, k = (f"vision_model.encoder.layers.0.self_attn.{letter}_proj.weight" for letter in "qv")
        return renamed | {q: renamed[k], k: renamed[q]}

    monkeypatch.setattr("peft_cbpt.convert.convert.to_transformers", swapped)
    assert feature_difference(weights, build_model(checkpoint_of(weights, "gelu"))) > 1e-2


def test_a_folder_that_would_not_load_is_not_written(tmp_path, capsys, monkeypatch):
    save_file(tiny_weights("tiny-vit"), tmp_path / "clip.safetensors")
    lossy = build_model(checkpoint_of(tiny_weights("tiny-vit"))).state_dict()
    lossy.pop("text_projection.weight")

    def save(model, folder):
        model.config.save_pretrained(folder)
        save_file(lossy, folder / "model.safetensors")

    monkeypatch.setattr("transformers.CLIPModel.save_pretrained", save)
    assert convert(tmp_path / "clip.safetensors", "--output_dir", tmp_path / "out") == 2
    assert "lacks 1 weights, such as text_projection.weight" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_folder_s_activation_cannot_be_overruled(tmp_path, capsys):
    assert convert(TOKENIZER, "--output_dir", tmp_path / "out", "--activation", "quick_gelu") == 2
    assert "says activation gelu, not quick_gelu" in capsys.readouterr().err


def test_a_pocket_model_of_no_published_shape_goes_both_ways(tmp_path):
    assert convert(TOKENIZER, "--output_dir", tmp_path / "out") == 0
    before = AutoModel.from_pretrained(TOKENIZER, dtype=torch.float32).state_dict()
    after = load_clip(str(tmp_path / "out")).model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
