"""Names of a CLIP's weights: OpenAI's layout, which OpenCLIP and most training code share, and transformers'.

The two differ in names, in the query, key and value of the transformers (one matrix in OpenAI's), and in the two
projections, which are transposed.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from peft_cbpt.common.errors import InputError

# Beginnings of names: OpenAI's, transformers'.
_TEXT = (
    ("transformer.resblocks.", "text_model.encoder.layers."),
    ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.", "text_model.final_layer_norm."),
    ("text_projection", "text_projection.weight"),
    ("logit_scale", "logit_scale"),
)
_VIT = (
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.proj", "visual_projection.weight"),
)
_RESNET = (("visual.", "vision_model."),)
# Within a transformer's block.
_BLOCK = (
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
_TRANSPOSED = ("text_projection", "visual.proj")
_IN_PROJ = ".attn.in_proj_"
_QKV = tuple(f".self_attn.{letter}_proj." for letter in "qkv")

# A weight that every CLIP has, with what wrapping modules put before its name.
_MARK = re.compile(r"(.*?)(?:text\.)?(?:ln_final|text_model\.final_layer_norm)\.weight$")

# Bookkeeping that some files hold beside the weights; BatchNorm's counter is not used in CLIP.
_BOOKKEEPING = (
    "input_resolution",
    "context_length",
    "vocab_size",
    "attn_mask",
    "position_ids",
    "num_batches_tracked",
)
_PARTS = frozenset(name.split(".")[0] for pair in (*_TEXT, *_VIT, *_RESNET, ("text.", "text_model.")) for name in pair)


def is_bookkeeping(name: str) -> bool:
    """Whether a tensor of this name is no weight, so that it may lack or be left out."""
    return name.split(".")[-1] in _BOOKKEEPING


def is_part(name: str) -> bool:
    """Whether a weight of this name, in either layout, belongs to a CLIP and to no head beside it."""
    return name.split(".")[0] in _PARTS


def is_resnet(state: Mapping[str, Tensor]) -> bool:
    """Whether the image tower is a ResNet; for either layout."""
    return any(name.startswith(("visual.layer", "vision_model.layer")) for name in state)


def unwrapped(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The same weights without what stands before their names: parallel training, torch.compile, Lightning and others
    put something there, and OpenCLIP's `custom_text` models keep the text tower in `text.`.

    Raises:
        InputError: if several models are in there.
    """
    prefixes = [match[1] for name in state if (match := _MARK.match(name))]
    if len(prefixes) > 1:
        raise InputError(
            f"{source} holds several models, under {' and '.join(prefixes)}: save the weights of one alone"
        )
    return {name.removeprefix("".join(prefixes)).removeprefix("text."): value for name, value in state.items()}


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's names to transformers'; names that are not OpenAI's stay."""
    pairs = (*_TEXT, *(_RESNET if is_resnet(state) else _VIT))
    renamed = {}
    for name, value in state.items():
        new = _renamed(name, pairs)
        if _IN_PROJ in new:
            block, kind = new.split(_IN_PROJ)
            for part, third in zip(_QKV, value.chunk(3), strict=True):
                renamed[f"{block}{part}{kind}"] = third
        else:
            renamed[new] = value.T if name in _TRANSPOSED else value
    return renamed


def to_openai(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names to OpenAI's, the inverse of `to_transformers`; names that are not transformers' stay."""
    towers = (*_TEXT, *(_RESNET if is_resnet(state) else _VIT))
    pairs = [(theirs, ours) for ours, theirs in towers]
    renamed = {}
    for name, value in state.items():
        new = _renamed(name, pairs)
        first, *others = _QKV
        if first in new:
            thirds = [value, *(state.get(name.replace(first, other)) for other in others)]
            if all(third is not None for third in thirds):
                renamed[new.replace(first, _IN_PROJ)] = torch.cat(thirds)  # type: ignore[arg-type]
        elif not any(other in new for other in others):
            renamed[new] = value.T if new in _TRANSPOSED else value
    return renamed


def _renamed(name: str, pairs: tuple[tuple[str, str], ...] | list[tuple[str, str]]) -> str:
    for old, new in pairs:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    else:
        return name
    if ".resblocks." in name or ".layers." in name:
        for ours, theirs in _BLOCK:
            name = name.replace(theirs, ours) if ".resblocks." in name else name.replace(ours, theirs)
    return name
