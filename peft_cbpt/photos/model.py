"""The CLIPs of the photographs: a ResNet and a ViT image tower for 64 pixels, with a small text tower."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from peft_cbpt.clip.resnet import CLIPResNetConfig, CLIPResNetModel, CLIPResNetVisionConfig
from peft_cbpt.clip.templates import IMAGENET_TEMPLATES
from peft_cbpt.data.imagenet import imagenet_classes
from peft_cbpt.photos.classes import names_by_wnid
from peft_cbpt.pocket.tokenizer import train_tokenizer

IMAGE_SIZE = 64
PROJECTION_DIM = 192
VOCABULARY_SIZE = 2000
ARCHITECTURES = ("resnet", "vit")


def build_image_processor() -> CLIPImageProcessorPil:
    """Resize and crop to 64 pixels; normalise with CLIP's mean and standard deviation."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )


def _corpus() -> Iterable[str]:
    for name in [*names_by_wnid().values(), *(one.name for one in imagenet_classes())]:
        yield from (name, f"a photo of a {name}.")
    yield from (template.format(" ") for template in IMAGENET_TEMPLATES)


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose merges cover names and templates; other words fall back to pieces and bytes."""
    return train_tokenizer(_corpus(), VOCABULARY_SIZE)


def build_model(tokenizer: CLIPTokenizer, architecture: str, image_size: int = IMAGE_SIZE) -> CLIPModel:
    """An untrained CLIP with a `resnet` or a `vit` image tower; its text tower keeps CLIP's 77 positions."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=PROJECTION_DIM,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    if architecture == "resnet":
        resnet = CLIPResNetVisionConfig(
            depths=[2, 2, 2, 2],
            width=32,
            num_attention_heads=16,
            image_size=image_size,
            projection_dim=PROJECTION_DIM,
        )
        return CLIPResNetModel(
            CLIPResNetConfig(text_config=text.to_dict(), vision_config=resnet.to_dict(), projection_dim=PROJECTION_DIM)
        )
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=8,
        projection_dim=PROJECTION_DIM,
        hidden_act="gelu",
    )
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=PROJECTION_DIM)
    )


def enlarged(clip: CLIPModel, tokenizer: CLIPTokenizer, architecture: str, image_size: int) -> CLIPModel:
    """The same CLIP for images of another size: weights as they are, image positions interpolated."""
    larger = build_model(tokenizer, architecture, image_size)
    state, shapes = clip.state_dict(), larger.state_dict()
    for name, weight in state.items():
        if weight.shape != shapes[name].shape:
            state[name] = _interpolated(weight, len(shapes[name]))
    larger.load_state_dict(state)
    return larger


def _interpolated(positions: Tensor, count: int) -> Tensor:
    """Positions (1 + n * n, width) of a class token and a square map, for `count` tokens."""
    old, new = (math.isqrt(number - 1) for number in (len(positions), count))
    grid = positions[1:].T.unflatten(1, (old, old))[None]
    grid = F.interpolate(grid, size=(new, new), mode="bilinear", align_corners=False)
    return torch.cat([positions[:1], grid[0].flatten(1).T])
