"""Where the families of CLIP differ. Everything else asks here, and treats them alike."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Family:
    """What a kind of CLIP asks for.

    Args:
        name: What people call it.
        fills_prompts: Whether the text tower sees all places of a row at every place and pools the last one. Every row
            is then filled up to all the places there are, as in training: with another length a prompt has other
            features. The others are causal and pool at EOS, so that what stands behind it counts for nothing.
        may_pool_highest: Whether an `eos_token_id` of 2 means pooling at the highest id of a row, as in old configs.
        takes_patches: Whether the image tower takes rows of patches and not images.
    """

    name: str = "CLIP"
    fills_prompts: bool = False
    may_pool_highest: bool = True
    takes_patches: bool = False


FAMILIES = {
    "clip": Family(),
    "clip_resnet": Family(),
    "metaclip_2": Family("MetaCLIP 2", may_pool_highest=False),
    "siglip": Family("SigLIP", fills_prompts=True),
    "siglip2": Family("SigLIP 2", fills_prompts=True, takes_patches=True),
}
"""By `model_type`; subclasses of a CLIP with one of their own are treated as CLIPs."""


def family_of(model: Any) -> Family:
    """The family of a model."""
    return FAMILIES.get(getattr(getattr(model, "config", None), "model_type", ""), Family())


def num_places(model: Any) -> int:
    """How many tokens the text tower has places for."""
    return model.text_model.embeddings.position_embedding.weight.shape[0]


def caption_ids(model: Any, tokenizer: PreTrainedTokenizerBase, captions: Sequence[str]) -> Tensor:
    """Token ids (n, L) of captions, cut to the places there are and filled up as the text tower wants them."""
    text = tokenizer(
        list(captions),
        padding="max_length" if family_of(model).fills_prompts else True,
        truncation=True,
        max_length=num_places(model),
        return_tensors="pt",
    )
    return text.input_ids


def image_side(model: Any) -> int:
    """Side of the square images that a model takes, in pixels."""
    vision = model.config.vision_config
    return vision.patch_size * math.isqrt(vision.num_patches) if family_of(model).takes_patches else vision.image_size


def image_inputs(model: Any, pixel_values: Tensor) -> dict[str, Tensor]:
    """Normalised images (B, 3, H, W) as the arguments that a model's image tower takes."""
    if not family_of(model).takes_patches:
        return {"pixel_values": pixel_values}
    side = model.config.vision_config.patch_size
    rows, columns = (length // side for length in pixel_values.shape[-2:])
    patches = pixel_values.unflatten(3, (columns, side)).unflatten(2, (rows, side)).permute(0, 2, 4, 3, 5, 1)
    return {
        "pixel_values": patches.flatten(3).flatten(1, 2),
        "pixel_attention_mask": torch.ones(len(patches), rows * columns, dtype=torch.int64, device=patches.device),
        "spatial_shapes": torch.tensor([[rows, columns]] * len(patches), device=patches.device),
    }
