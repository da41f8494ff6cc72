"""Checkpoints as others publish them, with random weights: tiny ones, and full-size ones of OpenAI's own code."""

import importlib.util
from importlib import metadata
from types import ModuleType

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from peft_cbpt.convert import architecture
from peft_cbpt.convert.architecture import ARCHITECTURES, Shapes, config_for
from peft_cbpt.convert.layout import to_openai

TINY = {
    "tiny-vit": Shapes((2,), 128, 8, 16, 2, 128, 32),
    "tiny-resnet": Shapes((1, 1, 1, 2), 8, 0, 64, 2, 128, 32),
}
TINY_VOCABULARY = 1663  # the pocket tokenizer's


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


def tiny_weights(name: str) -> dict[str, Tensor]:
    """A tiny checkpoint in OpenAI's layout; needs the fixture `tiny_architectures`."""
    with torch.device("meta"):
        model = AutoModel.from_config(config_for(name, TINY_VOCABULARY, 77, "gelu"))
    return random_weights(to_openai(model.state_dict()))


@pytest.fixture
def tiny_architectures(monkeypatch):
    """Lets the converter recognise the tiny checkpoints."""
    for name, shapes in TINY.items():
        monkeypatch.setitem(architecture.ARCHITECTURES, name, shapes)


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
    """OpenAI's model of a recognised architecture with random weights, in eval mode."""
    shapes = ARCHITECTURES[name]
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
    if device == "meta":
        return model
    model.load_state_dict(random_weights(model.state_dict()), assign=True)
    for block in model.transformer.resblocks:  # built on the meta device too, and in no state dict
        block.attn_mask = torch.full((77, 77), float("-inf")).triu(1)
    return model.eval()
