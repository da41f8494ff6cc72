"""Checkpoints as others publish them, with random weights: tiny ones, and full-size ones of OpenAI's own code."""

import importlib.util
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from peft_cbpt.clip.resnet import CLIPResNetConfig, CLIPResNetVisionConfig
from peft_cbpt.convert.layout import to_openai


@dataclass(frozen=True)
class Shapes:
    """What tells published CLIPs apart; `patch_size` is 0 for ResNets, `depths` has one number for ViTs."""

    depths: tuple[int, ...]
    width: int
    patch_size: int
    image_size: int
    text_depth: int
    text_width: int
    embed_dim: int
    head_width: int = 64
    mlp_width: int | None = None


ARCHITECTURES = {
    "ViT-B/32": Shapes((12,), 768, 32, 224, 12, 512, 512),
    "ViT-B/16": Shapes((12,), 768, 16, 224, 12, 512, 512),
    "ViT-L/14": Shapes((24,), 1024, 14, 224, 12, 768, 768),
    "ViT-L/14@336px": Shapes((24,), 1024, 14, 336, 12, 768, 768),
    "RN50": Shapes((3, 4, 6, 3), 64, 0, 224, 12, 512, 1024),
    "RN101": Shapes((3, 4, 23, 3), 64, 0, 224, 12, 512, 512),
    "RN50x4": Shapes((4, 6, 10, 6), 80, 0, 288, 12, 640, 640),
    "RN50x16": Shapes((6, 8, 18, 8), 96, 0, 384, 12, 768, 768),
    "RN50x64": Shapes((3, 15, 36, 10), 128, 0, 448, 12, 1024, 1024),
}
OPEN_CLIP = {
    "ViT-B/32-256": Shapes((12,), 768, 32, 256, 12, 512, 512),
    "ViT-B/16-plus-240": Shapes((12,), 896, 16, 240, 12, 640, 640),
    "ViT-L/14-280": Shapes((24,), 1024, 14, 280, 12, 768, 768),
    "ViT-H/14": Shapes((32,), 1280, 14, 224, 24, 1024, 1024, 80),
    "ViT-H/14-378": Shapes((32,), 1280, 14, 378, 24, 1024, 1024, 80),
    "ViT-g/14": Shapes((40,), 1408, 14, 224, 24, 1024, 1024, 88, 6144),
    "ViT-bigG/14": Shapes((48,), 1664, 14, 224, 32, 1280, 1280, 104, 8192),
}
TINY = {
    "tiny-vit": Shapes((2,), 128, 8, 16, 2, 128, 32),
    "tiny-resnet": Shapes((1, 1, 1, 2), 8, 0, 64, 2, 128, 32),
}
TINY_VOCABULARY = 1663  # the pocket tokenizer's


def config_for(shapes: Shapes, vocab_size: int = 49408, activation: str = "quick_gelu") -> CLIPConfig:
    """The transformers config of a published CLIP, written down and not read off weights."""
    text = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=shapes.text_width,
        intermediate_size=4 * shapes.text_width,
        num_hidden_layers=shapes.text_depth,
        num_attention_heads=shapes.text_width // 64,
        projection_dim=shapes.embed_dim,
        hidden_act=activation,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
    )
    parts = {"text_config": text.to_dict(), "projection_dim": shapes.embed_dim}
    if shapes.patch_size == 0:
        resnet = CLIPResNetVisionConfig(
            depths=list(shapes.depths),
            width=shapes.width,
            num_attention_heads=32 * shapes.width // 64,
            image_size=shapes.image_size,
            projection_dim=shapes.embed_dim,
        )
        return CLIPResNetConfig(vision_config=resnet.to_dict(), **parts)
    vit = CLIPVisionConfig(
        hidden_size=shapes.width,
        intermediate_size=shapes.mlp_width or 4 * shapes.width,
        num_hidden_layers=shapes.depths[0],
        num_attention_heads=shapes.width // shapes.head_width,
        image_size=shapes.image_size,
        patch_size=shapes.patch_size,
        projection_dim=shapes.embed_dim,
        hidden_act=activation,
    )
    return CLIPConfig(vision_config=vit.to_dict(), **parts)


def random_weights(shapes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values for a state dict on the meta device; norms and their statistics are random too."""
    generator = torch.Generator().manual_seed(0)

    def draw(name: str, like: Tensor) -> Tensor:
        if not like.is_floating_point():
            return torch.zeros(like.shape, dtype=like.dtype)
        values = torch.randn(like.shape, generator=generator)
        if name.endswith("running_var"):
            return 0.5 + values.abs()
        if like.ndim < 2:
            return values / 10 + (name.endswith("weight") or name == "logit_scale")
        return values * like[0].numel() ** -0.5

    return {name: draw(name, like) for name, like in shapes.items()}


def weights_on_meta(config: CLIPConfig) -> dict[str, Tensor]:
    """A state dict in OpenAI's layout without values."""
    with torch.device("meta"):
        return to_openai(AutoModel.from_config(config).state_dict())


def tiny_weights(name: str) -> dict[str, Tensor]:
    """A tiny checkpoint in OpenAI's layout."""
    return random_weights(weights_on_meta(config_for(TINY[name], TINY_VOCABULARY, "gelu")))


def openai_code() -> ModuleType:
    """OpenAI's `clip/model.py` from the package clip-anytorch, without the package, which needs torchvision."""
    try:
        files = metadata.files("clip-anytorch") or []
    except metadata.PackageNotFoundError:
        pytest.skip("clip-anytorch is not installed")
    (file,) = [file for file in files if file.as_posix() == "clip/model.py"]
    spec = importlib.util.spec_from_file_location("openai_clip_model", str(file.locate()))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def openai_model(name: str, device: str = "meta") -> torch.nn.Module:
    """OpenAI's model of a recognised architecture with random weights, in eval mode; OpenCLIP's have other heads."""
    shapes = (ARCHITECTURES | OPEN_CLIP)[name]
    depths = shapes.depths if shapes.patch_size == 0 else shapes.depths[0]
    with torch.device("meta"):
        model = openai_code().CLIP(
            shapes.embed_dim,
            shapes.image_size,
            depths,
            shapes.width,
            shapes.patch_size or None,
            77,
            49408,
            shapes.text_width,
            shapes.text_width // 64,
            shapes.text_depth,
        )
    if name in OPEN_CLIP:
        for block in [*model.visual.transformer.resblocks, *model.transformer.resblocks]:
            block.mlp.gelu = torch.nn.GELU()
        for block in model.visual.transformer.resblocks:
            block.attn.num_heads, block.attn.head_dim = shapes.width // shapes.head_width, shapes.head_width
    if device == "meta":
        return model
    model.load_state_dict(random_weights(model.state_dict()), assign=True)
    for block in model.transformer.resblocks:  # built on the meta device too, and in no state dict
        block.attn_mask = torch.full((77, 77), float("-inf")).triu(1)
    return model.eval()
