"""The last layer of a ViT, computed for the class token only: what it makes of other tokens is read by nobody."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPEncoderLayer


@contextmanager
def only_class_token(vision_model: nn.Module) -> Iterator[None]:
    """Within this context a CLIP's image tower pools the same output as before, to rounding, without its other tokens.

    `benchmarks/tower_parts.py` measures what that saves. Towers that are compiled, in
    training mode or without transformer layers (a ResNet) compute as ever.
    """
    tower: Any = vision_model
    layer = tower.encoder.layers[-1] if hasattr(tower, "encoder") else None
    if torch.compiler.is_compiling() or not isinstance(layer, CLIPEncoderLayer) or layer.training:
        yield
        return
    layer.forward = partial(_class_token, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        vars(layer).pop("forward", None)


def _class_token(layer: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """(B, 1, D), what the layer makes of the first token of `hidden` (B, L, D)."""
    attention = layer.self_attn

    def heads(tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    around = layer.layer_norm1(hidden)
    queries = heads(attention.q_proj(around[:, :1]))
    keys, values = heads(attention.k_proj(around)), heads(attention.v_proj(around))
    mixed = F.scaled_dot_product_attention(queries, keys, values, scale=attention.scale)
    pooled = hidden[:, :1] + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return pooled + layer.mlp(layer.layer_norm2(pooled))
