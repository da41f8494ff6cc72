"""A plain LoRA on the image tower of a CLIP, and on nothing else."""

from typing import Any

from peft import LoraConfig
from torch import nn


def image_tower_lora(clip: Any, rank: int) -> LoraConfig:
    """LoRA on every linear layer and convolution of the image tower and on the projection of its features, if any.

    Works on any tower: the layers are found by looking. Grouped convolutions are left out, whose groups LoRA's rank
    would have to be a multiple of, and what is inside an `nn.MultiheadAttention`, which takes its weights without
    calling its layers (SigLIP's pooling).

    Args:
        clip: A CLIP with `vision_model` and, as most have, `visual_projection`.
        rank: Of every update. The scale is 1 (`lora_alpha = rank`).
    """
    whole = tuple(
        f"{name}." for name, module in clip.vision_model.named_modules() if isinstance(module, nn.MultiheadAttention)
    )
    layers = [
        f"vision_model.{name}"
        for name, module in clip.vision_model.named_modules()
        if not name.startswith(whole)
        and (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1))
    ]
    if isinstance(getattr(clip, "visual_projection", None), nn.Linear):
        layers.append("visual_projection")
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=layers)
