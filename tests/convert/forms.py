"""Checkpoints as people have them, written small: names, layouts and configs are those of the real ones."""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from peft_cbpt.convert.checkpoint_arguments import NOTHING_GIVEN, CheckpointArguments
from peft_cbpt.convert.convert import build_model, checkpoint_of
from peft_cbpt.convert.layout import to_transformers
from peft_cbpt.pocket.model import resolve_model

Weights = dict[str, Tensor]
Write = Callable[[Weights, Path], Path]
TOKENIZER = resolve_model("pocket:clean")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
OPENAI = (0.48145466, 0.4578275, 0.40821073)
HALF, RAW = (0.5, 0.5, 0.5), (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Form:
    """A checkpoint that loads.

    Args:
        write: Puts it into an empty folder and returns what people would name.
        activation: What it is to be read with.
        mean: Of its pixels.
        says: Beginning of a note about it; without one there must be none.
        given: What its user has to say.
        tower: Of `published_clips.TINY`.
    """

    write: Write
    activation: str = "quick_gelu"
    mean: tuple[float, ...] = OPENAI
    says: str = ""
    given: CheckpointArguments = NOTHING_GIVEN
    tower: str = "tiny-vit"


class Marker:
    """Unpickling it makes a file, as a malicious checkpoint would do worse."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return open, (str(self.file), "w")


def as_module(weights: Weights) -> nn.Module:
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


def save_torchscript(weights: Weights, file: Path) -> None:
    class Archive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in as_module(weights).named_children():
                self.add_module(name, child)
            for name, value in weights.items():
                if "." not in name:
                    self.register_buffer(name, value)

        def forward(self, pixels: Tensor) -> Any:
            return pixels * self.logit_scale

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(Archive(), torch.ones(1)).save(file)


def named(weights: Weights, before: str) -> Weights:
    return {f"{before}{name}": value for name, value in weights.items()}


def contiguous(weights: Weights) -> Weights:
    return {name: value.contiguous() for name, value in weights.items()}


def pickled(name: str, content: Callable[[Weights], Any] = lambda weights: weights) -> Write:
    def write(weights: Weights, folder: Path) -> Path:
        torch.save(content(weights), folder / name)
        return folder / name

    return write


def safe(name: str, change: Callable[[Weights], Weights] = lambda weights: weights) -> Write:
    def write(weights: Weights, folder: Path) -> Path:
        save_file(contiguous(change(weights)), folder / name)
        return folder / name

    return write


def open_clip(
    images: Mapping[str, Any] | None = None,
    file: str = "open_clip_model.safetensors",
    vision: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    **model: Any,
) -> Write:
    """A folder of OpenCLIP, with the tokenizer that lies beside on the Hub."""

    def write(weights: Weights, folder: Path) -> Path:
        writer = safe(file) if file.endswith(".safetensors") else pickled(file)
        writer(weights, folder)
        cfg = {"embed_dim": 32, "vision_cfg": dict(vision or {}), "text_cfg": dict(text or {}), **model}
        content = {"model_cfg": cfg, "preprocess_cfg": dict(images or {})}
        (folder / "open_clip_config.json").write_text(json.dumps(content))
        for name in TOKENIZER_FILES:
            shutil.copy(f"{TOKENIZER}/{name}", folder)
        return folder

    return write


def open_clip_of(others: Weights) -> Write:
    """A folder of OpenCLIP with weights that are of another family."""
    return lambda weights, folder: open_clip(pixels(HALF, HALF))(weights | others, folder)


def pixels(mean: tuple[float, ...], std: tuple[float, ...], mode: str = "shortest") -> dict[str, Any]:
    return {"mean": list(mean), "std": list(std), "interpolation": "bicubic", "resize_mode": mode}


def transformers(shards: str = "50GB", pickle: bool = False) -> Write:
    """A whole folder of transformers."""

    def write(weights: Weights, folder: Path) -> Path:
        model = build_model(checkpoint_of(weights, "gelu"))
        model.save_pretrained(folder, max_shard_size=shards)
        for name in (*TOKENIZER_FILES, "preprocessor_config.json"):
            shutil.copy(f"{TOKENIZER}/{name}", folder)
        side = model.config.vision_config.image_size
        processor = json.loads((folder / "preprocessor_config.json").read_text())
        processor |= {"crop_size": {"height": side, "width": side}, "size": {"shortest_edge": side}}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        if pickle:
            old = load_file(folder / "model.safetensors")
            (folder / "model.safetensors").unlink()
            old["text_model.embeddings.position_ids"] = torch.arange(77)[None]
            torch.save(old, folder / "pytorch_model.bin")
        return folder

    return write


def beside(write: Write, *others: Callable[[Path], Any]) -> Write:
    """The same with other files in its folder."""

    def both(weights: Weights, folder: Path) -> Path:
        for other in others:
            other(folder)
        return write(weights, folder)

    return both


def timm_files(folder: Path) -> None:
    """What timm puts into the repositories that it shares with OpenCLIP."""
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_base_patch32_clip_224", "num_classes": 512}))
    save_file({"blocks.0.attn.qkv.weight": torch.ones(3, 3)}, folder / "model.safetensors")


def other_open_clip_files(folder: Path) -> None:
    open_clip(pixels(HALF, HALF))({"logit_scale": torch.ones(())}, folder)


def in_shards(weights: Weights, folder: Path) -> Path:
    open_clip(pixels(HALF, HALF), quick_gelu=True)(weights, folder)
    (folder / "open_clip_model.safetensors").unlink()
    names = sorted(weights)
    shards = {f"open_clip_model-0000{n + 1}-of-00002.safetensors": names[n::2] for n in range(2)}
    for file, part in shards.items():
        save_file(contiguous({name: weights[name] for name in part}), folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "open_clip_model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def as_custom_text(weights: Weights) -> Weights:
    at_top = ("visual.", "logit_scale")
    return {name if name.startswith(at_top) else f"text.{name}": value for name, value in weights.items()}


def half(weights: Weights) -> Weights:
    """Rounded to bfloat16 values beforehand, so that they are the same afterwards."""
    return {name: value.bfloat16() for name, value in weights.items()}


def noise(weights: Weights) -> Weights:
    return {name: torch.full_like(value, 0.1) for name, value in weights.items()}


ASSUMED = "nothing says the activation"
LOADS = {
    "OpenAI's weights in safetensors": Form(safe("ViT-B-32.safetensors"), says=ASSUMED),
    "OpenAI's weights and their bookkeeping": Form(
        pickled("RN50.pt", lambda weights: weights | {"input_resolution": torch.tensor(224)}),
        says=ASSUMED,
        tower="tiny-resnet",
    ),
    "OpenCLIP, epoch_5.pt": Form(
        pickled("epoch_5.pt", lambda weights: {"epoch": 5, "state_dict": named(weights, "module."), "optimizer": {}}),
        "gelu",
        says="nothing says how images of epoch_5.pt were normalised",
        given=CheckpointArguments(activation="gelu"),
    ),
    "CleanCLIP and BadCLIP, epoch_10.pt": Form(
        pickled("epoch_10.pt", lambda weights: {"state_dict": named(weights, "module."), "epoch": 10, "loss": 0.1}),
        says=ASSUMED,
        tower="tiny-resnet",
    ),
    "torch.compile": Form(pickled("last.pt", lambda weights: {"model": named(weights, "_orig_mod.")}), says=ASSUMED),
    "torch.compile in parallel": Form(
        pickled("last.pt", lambda weights: {"model_state_dict": named(weights, "_orig_mod.module.")}), says=ASSUMED
    ),
    "parallel over torch.compile, half precision": Form(
        pickled("last.pt", lambda weights: named(half(weights), "module._orig_mod.")), says=ASSUMED
    ),
    "Lightning": Form(
        pickled("epoch=3.ckpt", lambda weights: {"state_dict": named(weights, "model."), "hyper_parameters": {}}),
        says=ASSUMED,
    ),
    "Lightning around a wrapping module": Form(
        pickled("epoch=3.ckpt", lambda weights: {"state_dict": named(weights, "model.clip_model."), "loops": {}}),
        says=ASSUMED,
    ),
    "a module with a CLIP and a head": Form(
        pickled("best.pth", lambda weights: named(weights, "backbone.") | {"head.weight": torch.ones(2, 32)}),
        says="weights that are no part of a CLIP are left out: head.weight",
    ),
    "averaged weights alone": Form(
        pickled("ema.pt", lambda weights: {"state_dict_ema": named(weights, "module."), "epoch": 1}), says=ASSUMED
    ),
    "averaged weights beside the last ones": Form(
        pickled("both.pt", lambda weights: {"state_dict_ema": noise(weights), "state_dict": weights}),
        says="both.pt has state_dict and state_dict_ema: state_dict is taken; weights_key chooses",
    ),
    "averaged weights, asked for": Form(
        pickled("both.pt", lambda weights: {"state_dict": noise(weights), "state_dict_ema": weights}),
        says=ASSUMED,
        given=CheckpointArguments(weights_key="state_dict_ema"),
    ),
    "numpy scalars among the figures": Form(
        pickled("best.pt", lambda weights: {"state_dict": weights, "acc": np.float64(0.6), "step": np.int64(9)}),
        says=ASSUMED,
    ),
    "custom_text": Form(pickled("epoch_1.pt", lambda weights: {"state_dict": as_custom_text(weights)}), says=ASSUMED),
    "custom_text, in parallel": Form(
        pickled("epoch_1.pt", lambda weights: {"state_dict": named(as_custom_text(weights), "module.")}), says=ASSUMED
    ),
    "a scale with one dimension, trained with a bias": Form(
        safe(
            "open_clip_model.safetensors",
            lambda weights: (
                weights | {"logit_scale": weights["logit_scale"].reshape(1), "logit_bias": torch.tensor([-10.0])}
            ),
        ),
        "gelu",
        HALF,
        "weights that are no part of a CLIP are left out: logit_bias",
        CheckpointArguments(activation="gelu", image_mean=list(HALF), image_std=list(HALF)),
    ),
    "transformers' names in a bare file": Form(safe("model.safetensors", to_transformers), says=ASSUMED),
    "public poisoned models: OpenCLIP, raw pixels": Form(
        open_clip(pixels(RAW, (1.0, 1.0, 1.0)), vision={"layers": 2, "width": 128, "patch_size": 8, "image_size": 16}),
        "gelu",
        RAW,
    ),
    "public poisoned models with a ResNet": Form(
        open_clip(pixels(RAW, (1.0, 1.0, 1.0)), vision={"layers": [1, 1, 1, 2], "width": 8, "image_size": 64}),
        "gelu",
        RAW,
        tower="tiny-resnet",
    ),
    "LAION: L/14, mean and deviation of a half": Form(
        open_clip(pixels(HALF, HALF), file="open_clip_pytorch_model.bin"), "gelu", HALF
    ),
    "DFN: quick_gelu": Form(
        open_clip(pixels(OPENAI, OPENAI), file="open_clip_pytorch_model.bin", quick_gelu=True, custom_text=True)
    ),
    "DataComp, without a word on pixels": Form(
        open_clip({}), "gelu", says="nothing says how images of folder were normalised"
    ),
    "images squashed and resized at random": Form(
        open_clip({**pixels(HALF, HALF, "squash"), "interpolation": "random"}), "gelu", HALF
    ),
    "timm/*: OpenCLIP's files beside timm's": Form(
        beside(open_clip(pixels(OPENAI, OPENAI), quick_gelu=True, vision={"head_width": 64}), timm_files)
    ),
    "OpenCLIP in shards": Form(in_shards, mean=HALF),
    "OpenAI, MetaCLIP, TinyCLIP: transformers": Form(transformers(), "gelu"),
    "transformers in shards": Form(transformers(shards="100KB"), "gelu"),
    "transformers of old, in a pickle": Form(transformers(pickle=True), "gelu"),
    "LAION: transformers beside OpenCLIP's files": Form(beside(transformers(), other_open_clip_files), "gelu"),
}


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: value for key, value in weights.items() if key != name}


def also(**more: Tensor) -> Callable[[Weights], Weights]:
    return lambda weights: weights | more


def cut(write: Write, kept: float = 0.5) -> Write:
    def shorter(weights: Weights, folder: Path) -> Path:
        file = write(weights, folder)
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * kept)])
        return file

    return shorter


def written(content: str | bytes) -> Write:
    def write(weights: Weights, folder: Path) -> Path:
        file = folder / "clip.pt"
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return write


def calls(old: bool = False) -> Write:
    def write(weights: Weights, folder: Path) -> Path:
        content = {"state_dict": weights, "epoch": Marker(folder / "executed")}
        torch.save(content, folder / "clip.pt", _use_new_zipfile_serialization=not old)
        return folder / "clip.pt"

    return write


def torchscript(weights: Weights, folder: Path) -> Path:
    save_torchscript(weights, folder / "ViT-B-32.pt")
    return folder / "ViT-B-32.pt"


def config_of_transformers(**config: Any) -> Write:
    """A folder of another family, as far as it is looked at."""

    def write(weights: Weights, folder: Path) -> Path:
        (folder / "config.json").write_text(json.dumps(config))
        safe("model.safetensors")(weights, folder)
        for name in TOKENIZER_FILES:
            shutil.copy(f"{TOKENIZER}/{name}", folder)
        return folder

    return write


def lost_shard(weights: Weights, folder: Path) -> Path:
    in_shards(weights, folder)
    (folder / "open_clip_model-00002-of-00002.safetensors").unlink()
    return folder


def damaged_index(weights: Weights, folder: Path) -> Path:
    in_shards(weights, folder)
    (folder / "open_clip_model.safetensors.index.json").write_text("{}")
    return folder


def timm_alone(weights: Weights, folder: Path) -> Path:
    timm_files(folder)
    return folder


BLOCK = "transformer.resblocks.1.ln_1.weight"
OLD = "clip.pt"
SIGLIP = {"visual.trunk.attn_pool.latent": torch.ones(1), "logit_bias": torch.ones(1)}
REFUSED: dict[str, tuple[Write, str]] = {
    "OpenAI's archive": (torchscript, "TorchScript archive.*--allow-unsafe"),
    "a pickle that calls": (calls(), "wants to call .*open.*--allow-unsafe"),
    "an old pickle that calls": (calls(old=True), "wants to call .*open.*--allow-unsafe"),
    "half a file": (cut(pickled(OLD)), "damaged"),
    "half a safetensors file": (cut(safe("model.safetensors"), 0.9), "damaged"),
    "a git-lfs pointer": (written("version https://git-lfs.github.com/spec/v1\n"), "text that begins with 'version h"),
    "a page": (written("<!DOCTYPE html><html>"), "such as a page"),
    "a list of names": (written("names of classes\ncat\n"), "no checkpoint but text"),
    "numbers": (written(bytes(64)), "no checkpoint.*nor what torch.save writes"),
    "an empty file": (written(""), "damaged"),
    "a list": (pickled(OLD, lambda weights: [1, 2]), "no state dict but a list"),
    "no tensors": (pickled(OLD, lambda weights: {"epoch": 3}), "'epoch' is a int, not a tensor"),
    "no CLIP": (pickled(OLD, lambda weights: {"weight": torch.ones(2)}), "lacks a usable 'ln_final.weight'"),
    "a teacher and a student": (
        pickled(OLD, lambda weights: named(weights, "student.") | named(weights, "teacher.")),
        "holds several models, under student. and teacher.",
    ),
    "a missing weight": (pickled(OLD, without(BLOCK)), f"1 missing .{BLOCK}., 0 unexpected"),
    "scales of layers": (
        pickled(OLD, also(**{"visual.transformer.resblocks.0.ls_1.gamma": torch.ones(1)})),
        "0 missing .none., 1 unexpected .visual.transformer.resblocks.0.ls_1.gamma.",
    ),
    "another shape": (pickled(OLD, also(**{BLOCK: torch.ones(3)})), f"1 weights of other shapes, such as {BLOCK}"),
    "towers that do not meet": (
        pickled(OLD, also(text_projection=torch.ones(128, 48))),
        r"1 weights of other shapes, such as visual.proj: \(128, 32\) for \(128, 48\)",
    ),
    "not finite": (pickled(OLD, also(logit_scale=torch.tensor(float("nan")))), "logit_scale .*not finite"),
    "another vocabulary": (
        pickled(OLD, also(**{"token_embedding.weight": torch.ones(50, 128)})),
        "tokenizer has 1663 entries",
    ),
    "images that are not square": (
        pickled(OLD, also(**{"visual.positional_embedding": torch.ones(7, 128)})),
        "6 places, which are no square: only square images are served",
    ),
    "a config of images that are not square": (
        open_clip(vision={"image_size": [16, 32]}),
        r"for images of \[16, 32\], which are not square",
    ),
    "a config of other images": (
        open_clip(vision={"image_size": 32}),
        "2 x 2 patches of 8, but the config says .* 32",
    ),
    "CLIPA: averages tokens": (open_clip(vision={"pool_type": "avg"}), "has pool_type avg in vision_cfg"),
    "text that is not causal": (open_clip(text={"no_causal_mask": True}), "has no_causal_mask True in text_cfg"),
    "images padded to a square": (
        open_clip(pixels(HALF, HALF, "longest")),
        "resized by bicubic and longest in .* not served",
    ),
    "a SigLIP of OpenCLIP": (open_clip_of(SIGLIP), "is a SigLIP in OpenCLIP's form, of which only folders of transf"),
    "an EVA": (pickled(OLD, also(**{"visual.trunk.cls_token": torch.ones(1)})), "image tower of timm, such as EVA"),
    "an EVA-CLIP of its authors": (
        pickled(OLD, lambda weights: {"module": named(weights, "visual.blocks.0.")}["module"]),
        "is an EVA-CLIP",
    ),
    "MobileCLIP": (
        open_clip_of({"visual.trunk.stem.0.conv.weight": torch.ones(1)}),
        "image tower of timm, such as EVA or MobileCLIP",
    ),
    "a CoCa": (
        pickled(OLD, also(**{"text_decoder.ln_final.weight": torch.ones(1)})),
        "is a CoCa, which is not served",
    ),
    "a text tower of BERT": (
        pickled(OLD, also(**{"text.transformer.embeddings.x": torch.ones(1)})),
        "a BERT for its text",
    ),
    "ChineseCLIP of its authors": (
        pickled(OLD, lambda weights: {"state_dict": {"module.bert.pooler": torch.ones(1)}}),
        "is a ChineseCLIP",
    ),
    "ChineseCLIP": (config_of_transformers(model_type="chinese_clip"), "'chinese_clip' model, not a CLIP"),
    "ALIGN": (config_of_transformers(model_type="align"), "'align' model, not a CLIP"),
    "AltCLIP": (config_of_transformers(model_type="altclip"), "'altclip' model, not a CLIP"),
    "Jina CLIP": (
        config_of_transformers(model_type="jina_clip", auto_map={"AutoModel": "jinaai/jina-clip-v2--modeling.Model"}),
        "'jina_clip' model, not a CLIP",
    ),
    "BERT": (config_of_transformers(model_type="bert"), "'bert' model, not a CLIP"),
    "a lost shard": (lost_shard, "there is no file .*open_clip_model-00002-of-00002.safetensors"),
    "a damaged index": (damaged_index, "cannot read .*open_clip_model.safetensors.index.json"),
    "timm's files alone": (timm_alone, "is not of transformers, and open_clip_config.json is missing"),
    "nothing": (lambda weights, folder: folder / "clip.pt", "there is no"),
}
