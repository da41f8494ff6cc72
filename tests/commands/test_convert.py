"""`peft-cbpt convert`, on tiny checkpoints laid out as people publish them."""

import json
import re
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel

from peft_cbpt.cli import main
from peft_cbpt.clip.loading import load_clip
from peft_cbpt.convert.convert import OPENAI_FILE, build_model, checkpoint_of
from peft_cbpt.convert.layout import to_transformers
from peft_cbpt.pocket.model import resolve_model
from tests.convert.published_clips import TINY, tiny_weights
from tests.convert.reference import feature_difference

OPEN_CLIP_IMAGES = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.5]}
TOKENIZER = resolve_model("pocket:clean")


class Marker:
    """Unpickling it makes a file, as a malicious checkpoint would do worse."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def as_module(weights):
    """A module whose state dict is `weights`."""
    root = nn.Module()
    for name, value in weights.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_buffer(leaf, value)
    return root


def save_torchscript(weights, file):
    class Archive(nn.Module):
        def __init__(self):
            super().__init__()
            for name, child in as_module(weights).named_children():
                self.add_module(name, child)
            for name, value in weights.items():
                if "." not in name:
                    self.register_buffer(name, value)

        def forward(self, pixels):
            return pixels * self.logit_scale

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(Archive(), torch.ones(1)).save(file)


def bookkeeping():
    return {name: torch.tensor(77) for name in ("input_resolution", "context_length", "vocab_size")}


def openai_archive(weights, tmp_path):
    half = {name: value.half() if value.ndim > 1 else value for name, value in weights.items()}
    save_torchscript(half | bookkeeping(), tmp_path / "clip.pt")
    return [tmp_path / "clip.pt", "--allow-unsafe"]


def training_checkpoint(weights, tmp_path):
    named = {f"module.{name}": value for name, value in weights.items()}
    torch.save({"epoch": 5, "name": "run", "state_dict": named, "optimizer": {"state": {}}}, tmp_path / "epoch_5.pt")
    return [tmp_path / "epoch_5.pt"]


def pickled_training_checkpoint(weights, tmp_path):
    torch.save({"state_dict": weights, "where": Marker(tmp_path / "log")}, tmp_path / "epoch_5.pt")
    return [tmp_path / "epoch_5.pt", "--allow-unsafe"]


def open_clip_file(weights, tmp_path):
    weights = {name: value.reshape(1) if name == "logit_scale" else value for name, value in weights.items()}
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    return [tmp_path / "open_clip_model.safetensors", "--activation", "gelu"]


def open_clip_folder(weights, tmp_path):
    torch.save(weights, tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {"quick_gelu": True}, "preprocess_cfg": OPEN_CLIP_IMAGES})
    )
    return [tmp_path]


def compiled_in_parallel(weights, tmp_path):
    named = {f"_orig_mod.module.{name}": value for name, value in weights.items()}
    torch.save({"model_state_dict": named, "best": np.float64(0.6), "steps": np.int64(9)}, tmp_path / "last.pt")
    return [tmp_path / "last.pt"]


def lightning_checkpoint(weights, tmp_path):
    named = {f"model.clip_model.{name}": value for name, value in weights.items()}
    torch.save({"state_dict": named, "pytorch-lightning_version": "2.5"}, tmp_path / "epoch=3.ckpt")
    return [tmp_path / "epoch=3.ckpt"]


def custom_text(weights, tmp_path):
    """As OpenCLIP saves a model with `custom_text`."""
    at_top = ("visual.", "logit_scale")
    named = {name if name.startswith(at_top) else f"text.{name}": value for name, value in weights.items()}
    torch.save({"state_dict_ema": named, "epoch": 1}, tmp_path / "ema.pt")
    return [tmp_path / "ema.pt"]


def timm_folder(weights, tmp_path):
    """As open_clip's own default weights lie on the Hub, here of a model trained on raw, squashed pixels."""
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_base_patch32_clip_224"}))
    save_file({"blocks.0.attn.qkv.weight": torch.ones(3, 3)}, tmp_path / "model.safetensors")
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "open_clip_model.safetensors")
    images = {"mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear", "resize_mode": "squash"}
    model = {"quick_gelu": True, "vision_cfg": {"head_width": 64}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": images}))
    return [tmp_path]


def transformers_folder(weights, tmp_path):
    build_model(checkpoint_of(weights, "gelu")).save_pretrained(tmp_path / "hf")
    for file in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(f"{TOKENIZER}/{file}", tmp_path / "hf")
    old = load_file(tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "model.safetensors").unlink()
    old["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save(old, tmp_path / "hf" / "pytorch_model.bin")
    size = json.loads((tmp_path / "hf" / "config.json").read_text())["vision_config"]["image_size"]
    processor = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    processor |= {"crop_size": {"height": size, "width": size}, "size": {"shortest_edge": size}}
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(processor))
    return [tmp_path / "hf"]


def bare_transformers_folder(weights, tmp_path):
    build_model(checkpoint_of(weights, "gelu")).save_pretrained(tmp_path / "hf", max_shard_size="100KB")
    return [tmp_path / "hf"]


def transformers_weights(weights, tmp_path):
    weights = {name: value.contiguous() for name, value in to_transformers(weights).items()}
    save_file(weights, tmp_path / "model.safetensors")
    return [tmp_path / "model.safetensors"]


PUBLISHED = {
    "OpenAI": (openai_archive, "quick_gelu"),
    "CleanCLIP": (training_checkpoint, "quick_gelu"),
    "pickled": (pickled_training_checkpoint, "quick_gelu"),
    "OpenCLIP file": (open_clip_file, "gelu"),
    "OpenCLIP folder": (open_clip_folder, "quick_gelu"),
    "compiled": (compiled_in_parallel, "quick_gelu"),
    "Lightning": (lightning_checkpoint, "quick_gelu"),
    "custom text": (custom_text, "quick_gelu"),
    "timm folder": (timm_folder, "quick_gelu"),
    "transformers folder": (transformers_folder, "gelu"),
    "transformers weights and config": (bare_transformers_folder, "gelu"),
    "transformers weights": (transformers_weights, "quick_gelu"),
}


BARE = {kind for kind in PUBLISHED if "folder" not in kind and "config" not in kind}


def convert(*words):
    return main(["convert", *map(str, words), "--tokenizer", TOKENIZER])


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_checkpoints_become_folders(kind, name, tmp_path, capsys):
    publish, activation = PUBLISHED[kind]
    weights = tiny_weights(name)
    (tmp_path / "in").mkdir()
    source, *options = publish(weights, tmp_path / "in")
    assert convert(source, "--output_dir", tmp_path / "out", *options) == 0
    said = capsys.readouterr().out
    assert name.split("-")[1] in said.lower() and f"activation {activation}" in said
    assert ("nothing says how its images" in said) == (kind in BARE)
    clip = load_clip(str(tmp_path / "out"))
    assert clip.model.config.text_config.hidden_act == activation and clip.model.config.model_type.startswith("clip")
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []
    if kind == "OpenCLIP folder":
        processor = clip.image_processor
        assert {"mean": list(processor.image_mean), "std": list(processor.image_std)} == OPEN_CLIP_IMAGES
    if kind == "timm folder":
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


def without(name):
    return lambda weights, file: torch.save({k: v for k, v in weights.items() if k != name}, file)


def with_also(**more):
    return lambda weights, file: torch.save(weights | more, file)


def cut(weights, file):
    torch.save(weights, file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def cut_safetensors(weights, file):
    save_file({name: value.contiguous() for name, value in weights.items()}, file)
    file.write_bytes(file.read_bytes()[:-1000])


def malicious(weights, file):
    torch.save({"state_dict": weights, "epoch": Marker(file.parent / "executed")}, file)


def malicious_legacy(weights, file):
    content = {"state_dict": weights, "epoch": Marker(file.parent / "executed")}
    torch.save(content, file, _use_new_zipfile_serialization=False)


def folder_of_something_else(weights, file):
    file.mkdir()
    (file / "notes.txt").write_text("no model here")


def folder_of_bert(weights, file):
    file.mkdir()
    (file / "config.json").write_text(json.dumps({"model_type": "bert"}))


def folder_without_weights(weights, file):
    file.mkdir()
    shutil.copy(f"{TOKENIZER}/config.json", file)


def padded_open_clip_folder(weights, file):
    file.mkdir()
    open_clip_folder(weights, file)
    config = {"model_cfg": {}, "preprocess_cfg": {"resize_mode": "longest"}}
    (file / "open_clip_config.json").write_text(json.dumps(config))


def sharded(weights, file, index):
    folder_without_weights(weights, file)
    save_file({"logit_scale": torch.ones(())}, file / "model-00001-of-00002.safetensors")
    (file / "model.safetensors.index.json").write_text(json.dumps(index))


def lost_shard(weights, file):
    sharded(weights, file, {"weight_map": {"logit_scale": "model-00001-of-00002.safetensors",
                                           "text_projection.weight": "model-00002-of-00002.safetensors"}})  # fmt: skip


def damaged_index(weights, file):
    sharded(weights, file, {})


BLOCK = "transformer.resblocks.1.ln_1.weight"
REFUSED = {
    "nothing": (lambda weights, file: None, "there is no checkpoint"),
    "a pickle that calls": (malicious, "wants to call .*open.*--allow-unsafe"),
    "an old pickle that calls": (malicious_legacy, "wants to call .*open.*--allow-unsafe"),
    "TorchScript": (save_torchscript, "TorchScript archive.*--allow-unsafe"),
    "half a file": (cut, "damaged"),
    "half a safetensors file": (cut_safetensors, "damaged"),
    "text": (lambda weights, file: file.write_text("hello world"), "damaged"),
    "an empty file": (lambda weights, file: file.touch(), "damaged"),
    "a list": (lambda weights, file: torch.save([1, 2], file), "no state dict but a list"),
    "no tensors": (lambda weights, file: torch.save({"epoch": 3}, file), "'epoch' is a int, not a tensor"),
    "no CLIP": (lambda weights, file: torch.save({"weight": torch.ones(2)}, file), "lacks a usable 'ln_final.weight'"),
    "a missing weight": (without(BLOCK), f"1 missing .{BLOCK}., 0 unexpected"),
    "an unexpected weight": (with_also(head=torch.ones(1)), "0 missing .none., 1 unexpected .head."),
    "a SigLIP": (with_also(logit_bias=torch.ones(1)), "is a SigLIP, which is not served: it has logit_bias"),
    "an EVA": (with_also(**{"visual.trunk.cls_token": torch.ones(1)}), "image tower of timm, such as EVA"),
    "a CoCa": (with_also(**{"text_decoder.ln": torch.ones(1)}), "is a CoCa, which is not served"),
    "a text tower of BERT": (with_also(**{"text.transformer.embeddings.x": torch.ones(1)}), "a BERT for its text"),
    "resized in another way": (padded_open_clip_folder, "resized by bicubic and longest in .* not served"),
    "a lost shard": (lost_shard, "there is no file .*model-00002-of-00002.safetensors"),
    "a damaged index": (damaged_index, "cannot read .*model.safetensors.index.json"),
    "another shape": (with_also(**{BLOCK: torch.ones(3)}), f"1 weights of other shapes, such as {BLOCK}"),
    "towers that do not meet": (
        with_also(text_projection=torch.ones(128, 48)),
        r"1 weights of other shapes, such as visual.proj: \(128, 32\) for \(128, 48\)",
    ),
    "not finite": (with_also(logit_scale=torch.tensor(float("nan"))), "logit_scale .*not finite"),
    "another vocabulary": (with_also(**{"token_embedding.weight": torch.ones(50, 128)}), "tokenizer has 1663 entries"),
    "another folder": (folder_of_something_else, "no config.json"),
    "a BERT": (folder_of_bert, "'bert' model, not a CLIP"),
    "a folder without weights": (folder_without_weights, "holds no weights"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_checkpoints_are_refused_and_nothing_is_left(kind, tmp_path, capsys):
    publish, message = REFUSED[kind]
    publish(tiny_weights("tiny-vit"), tmp_path / "source")
    assert convert(tmp_path / "source", "--output_dir", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and said.count("error:") == 1, said
    assert {file.name for file in tmp_path.iterdir()} <= {"source"}


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
    assert "says gelu, not quick_gelu" in capsys.readouterr().err


def test_a_pocket_model_of_no_published_shape_goes_both_ways(tmp_path):
    assert convert(TOKENIZER, "--output_dir", tmp_path / "out") == 0
    before = AutoModel.from_pretrained(TOKENIZER, dtype=torch.float32).state_dict()
    after = load_clip(str(tmp_path / "out")).model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
