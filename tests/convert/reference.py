"""CLIP's two towers as plain functions of a state dict in OpenAI's layout.

Another way to the same features than transformers' modules, to hold conversions against the weights they
came from. Written from Radford et al. (2021) and the layout's names; slow paths, no dropout, float32.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel

from peft_cbpt.convert.layout import is_resnet

State = Mapping[str, Tensor]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "quick_gelu": lambda hidden: hidden * torch.sigmoid(1.702 * hidden),
}


@torch.no_grad()
def feature_difference(weights: State, model: CLIPModel) -> float:
    """Largest difference of unit-norm features between a model and the weights, in OpenAI's layout, it was made from.

    Two seeded noise images and two seeded token rows, one of full length, go through both.
    """
    text, vision = model.config.text_config, model.config.vision_config
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, vision.image_size, vision.image_size, generator=generator)
    length, eos = text.max_position_embeddings, text.eos_token_id
    ids = torch.randint(1, text.vocab_size - 2, (2, length), generator=generator)
    eos_places = torch.tensor([length - 1, length // 2])
    ids[torch.arange(2), eos_places] = eos
    act = getattr(vision, "hidden_act", text.hidden_act)
    pairs = (
        (
            image_features(weights, pixels, vision.num_attention_heads, act, getattr(vision, "strides", ())),
            model.get_image_features(pixel_values=pixels).pooler_output,
        ),
        (
            text_features(weights, ids, text.num_attention_heads, text.hidden_act, eos_places),
            model.get_text_features(input_ids=ids).pooler_output,
        ),
    )
    return max((F.normalize(one, dim=-1) - F.normalize(other, dim=-1)).abs().max().item() for one, other in pairs)


def image_features(state: State, pixel_values: Tensor, num_heads: int, activation: str, strides: tuple) -> Tensor:
    """Features (B, D) of normalised images (B, 3, H, W).

    Args:
        state: Weights in OpenAI's layout.
        pixel_values: The images.
        num_heads: Heads of the ViT's layers or of the ResNet's attention pooling.
        activation: A key of `ACTIVATIONS`, for ViTs.
        strides: Stride of each stage, for ResNets.
    """
    if is_resnet(state):
        return _resnet(state, pixel_values, num_heads, strides)
    patches = F.conv2d(pixel_values, state["visual.conv1.weight"], stride=state["visual.conv1.weight"].shape[-1])
    first = state["visual.class_embedding"].expand(len(patches), 1, -1)
    hidden = torch.cat([first, patches.flatten(2).mT], dim=1) + state["visual.positional_embedding"]
    hidden = _layer_norm(state, "visual.ln_pre", hidden)
    hidden = _blocks(state, "visual.transformer.resblocks", hidden, num_heads, activation, None)
    return _layer_norm(state, "visual.ln_post", hidden[:, 0]) @ state["visual.proj"]


def text_features(state: State, input_ids: Tensor, num_heads: int, activation: str, eos_places: Tensor) -> Tensor:
    """Features (B, D) of token ids (B, L), pooled at position `eos_places` (B,) of each."""
    length = input_ids.shape[1]
    hidden = state["token_embedding.weight"][input_ids] + state["positional_embedding"][:length]
    causal = torch.full((length, length), float("-inf")).triu(1)
    hidden = _blocks(state, "transformer.resblocks", hidden, num_heads, activation, causal)
    hidden = _layer_norm(state, "ln_final", hidden)
    return hidden[torch.arange(len(hidden)), eos_places] @ state["text_projection"]


def _blocks(state: State, prefix: str, hidden: Tensor, num_heads: int, activation: str, mask: Tensor | None) -> Tensor:
    depth = len({name.removeprefix(prefix + ".").split(".")[0] for name in state if name.startswith(prefix + ".")})
    for index in range(depth):
        block = f"{prefix}.{index}"
        weights = {
            "in_proj_weight": state[f"{block}.attn.in_proj_weight"],
            "in_proj_bias": state[f"{block}.attn.in_proj_bias"],
            "out_proj_weight": state[f"{block}.attn.out_proj.weight"],
            "out_proj_bias": state[f"{block}.attn.out_proj.bias"],
        }
        normed = _layer_norm(state, f"{block}.ln_1", hidden)
        hidden = hidden + _attention(normed, normed, num_heads, mask, **weights)
        inner = _linear(state, f"{block}.mlp.c_fc", _layer_norm(state, f"{block}.ln_2", hidden))
        hidden = hidden + _linear(state, f"{block}.mlp.c_proj", ACTIVATIONS[activation](inner))
    return hidden


def _attention(query: Tensor, keys: Tensor, num_heads: int, mask: Tensor | None, **weights: Tensor) -> Tensor:
    """Multi-head attention of (B, Q, d) over (B, L, d), by PyTorch's own function for packed weights."""
    attended, _ = F.multi_head_attention_forward(
        query.transpose(0, 1),
        keys.transpose(0, 1),
        keys.transpose(0, 1),
        query.shape[-1],
        num_heads,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        training=False,
        need_weights=False,
        attn_mask=mask,
        **weights,  # type: ignore[arg-type]
    )
    return attended.transpose(0, 1)


def _resnet(state: State, hidden: Tensor, num_heads: int, strides: tuple) -> Tensor:
    for index, stride in (("1", 2), ("2", 1), ("3", 1)):
        hidden = F.relu(_conv(state, f"visual.conv{index}", f"visual.bn{index}", hidden, stride))
    hidden = F.avg_pool2d(hidden, 2)
    for stage, stride in enumerate(strides, start=1):
        depth = 1 + max(int(name.split(".")[2]) for name in state if name.startswith(f"visual.layer{stage}."))
        for block in range(depth):
            hidden = _bottleneck(state, f"visual.layer{stage}.{block}", hidden, stride if block == 0 else 1)
    places = hidden.flatten(2).mT
    tokens = torch.cat([places.mean(1, keepdim=True), places], 1) + state["visual.attnpool.positional_embedding"]
    pool = "visual.attnpool"
    pooled = _attention(
        tokens[:, :1],
        tokens,
        num_heads,
        None,
        in_proj_weight=torch.cat([state[f"{pool}.{part}_proj.weight"] for part in "qkv"]),
        in_proj_bias=torch.cat([state[f"{pool}.{part}_proj.bias"] for part in "qkv"]),
        out_proj_weight=state[f"{pool}.c_proj.weight"],
        out_proj_bias=state[f"{pool}.c_proj.bias"],
    )
    return pooled[:, 0]


def _bottleneck(state: State, name: str, hidden: Tensor, stride: int) -> Tensor:
    inner = F.relu(_conv(state, f"{name}.conv1", f"{name}.bn1", hidden))
    inner = F.relu(_conv(state, f"{name}.conv2", f"{name}.bn2", inner))
    inner = _conv(state, f"{name}.conv3", f"{name}.bn3", F.avg_pool2d(inner, stride))
    if f"{name}.downsample.0.weight" in state:
        hidden = _conv(state, f"{name}.downsample.0", f"{name}.downsample.1", F.avg_pool2d(hidden, stride))
    return F.relu(inner + hidden)


def _conv(state: State, conv: str, norm: str, hidden: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{conv}.weight"]
    hidden = F.conv2d(hidden, weight, stride=stride, padding=weight.shape[-1] // 2)
    statistics = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
    return F.batch_norm(hidden, *statistics, state[f"{norm}.weight"], state[f"{norm}.bias"])


def _layer_norm(state: State, name: str, hidden: Tensor) -> Tensor:
    return F.layer_norm(hidden, hidden.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def _linear(state: State, name: str, hidden: Tensor) -> Tensor:
    return F.linear(hidden, state[f"{name}.weight"], state[f"{name}.bias"])
