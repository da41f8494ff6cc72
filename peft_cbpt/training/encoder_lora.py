"""A plain LoRA on the image tower of a CLIP, and on nothing else."""

from peft import LoraConfig
from torch import nn
from transformers import CLIPModel


def image_tower_lora(clip: CLIPModel, rank: int) -> LoraConfig:
    """LoRA on every linear layer and convolution of the image tower and on the projection of its features.

    Works on any tower: the layers are found by looking. Grouped convolutions are left out, whose groups LoRA's rank
    would have to be a multiple of.

    Args:
        clip: A CLIP with `vision_model` and `visual_projection`.
        rank: Of every update. The scale is 1 (`lora_alpha = rank`).
    """
    layers = [
        f"vision_model.{name}"
        for name, module in clip.vision_model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    ]
    if isinstance(clip.visual_projection, nn.Linear):
        layers.append("visual_projection")
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=layers)
