"""The last layer of a transformer tower, computed for the one token that becomes the feature.

What this layer makes of other tokens is read by nobody, so all but their keys and values is left out.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.clip.modeling_clip import CLIPEncoderLayer


@contextmanager
def only_pooled_tokens(tower: Any, positions: Tensor | None = None) -> Iterator[None]:
    """Within this context the pooled output of a CLIP's tower is as before, to rounding; its other tokens are not.

    Calls from other threads compute as ever, and so do compiled towers, those without transformer layers (a ResNet),
    and those that train with dropout or with gradient checkpointing.

    Args:
        tower: `vision_model`, whose first token is pooled, or `text_model`. Attention masks are not looked at.
        positions: int64 (B,), the token that is pooled in each text; every token sees those before it.
    """
    layer: Any = tower.encoder.layers[-1] if hasattr(tower, "encoder") else None
    plain = isinstance(layer, CLIPEncoderLayer) and "forward" not in vars(layer)
    if torch.compiler.is_compiling() or not plain or (layer.training and _does_more_in_training(layer)):
        yield
        return
    thread = threading.get_ident()

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if threading.get_ident() != thread:
            ordinary: Tensor = type(layer).forward(layer, hidden_states, *args, **kwargs)
            return ordinary
        if positions is None:
            return _last_layer(layer, hidden_states, lambda tokens: tokens[:, :1], None)
        n_texts, length = hidden_states.shape[:2]
        places = positions.to(hidden_states.device)
        rows = torch.arange(n_texts, device=places.device)
        seen = torch.arange(length, device=places.device) <= places[:, None]
        pooled = _last_layer(layer, hidden_states, lambda tokens: tokens[rows, places][:, None], seen[:, None, None])
        return hidden_states.index_put((rows, places), pooled[:, 0])

    layer.forward = forward
    try:
        yield
    finally:
        vars(layer).pop("forward", None)


def _does_more_in_training(layer: Any) -> bool:
    return layer.self_attn.dropout > 0 or getattr(layer, "gradient_checkpointing", False)


def _last_layer(layer: Any, hidden: Tensor, pick: Callable[[Tensor], Tensor], seen: Tensor | None) -> Tensor:
    """(B, 1, D), what the layer makes of the token that `pick` takes from `hidden` (B, L, D)."""
    attention = layer.self_attn

    def heads(tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    around = layer.layer_norm1(hidden)
    queries = heads(attention.q_proj(pick(around)))
    keys, values = heads(attention.k_proj(around)), heads(attention.v_proj(around))
    mixed = F.scaled_dot_product_attention(queries, keys, values, seen, scale=attention.scale)
    pooled = pick(hidden) + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return pooled + layer.mlp(layer.layer_norm2(pooled))
