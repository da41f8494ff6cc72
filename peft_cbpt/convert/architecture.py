"""Which CLIP a checkpoint holds, read off the shapes of its weights and never off a name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from peft_cbpt.clip.resnet import CLIPResNetConfig, CLIPResNetVisionConfig
from peft_cbpt.common.errors import InputError
from peft_cbpt.convert.layout import is_resnet

HEAD_WIDTH = 64
PATCHLESS = 0


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


ARCHITECTURES = {
    "ViT-B/32": Shapes((12,), 768, 32, 224, 12, 512, 512),
    "ViT-B/16": Shapes((12,), 768, 16, 224, 12, 512, 512),
    "ViT-L/14": Shapes((24,), 1024, 14, 224, 12, 768, 768),
    "ViT-L/14@336px": Shapes((24,), 1024, 14, 336, 12, 768, 768),
    "RN50": Shapes((3, 4, 6, 3), 64, PATCHLESS, 224, 12, 512, 1024),
    "RN101": Shapes((3, 4, 23, 3), 64, PATCHLESS, 224, 12, 512, 512),
    "RN50x4": Shapes((4, 6, 10, 6), 80, PATCHLESS, 288, 12, 640, 640),
    "RN50x16": Shapes((6, 8, 18, 8), 96, PATCHLESS, 384, 12, 768, 768),
    "RN50x64": Shapes((3, 15, 36, 10), 128, PATCHLESS, 448, 12, 1024, 1024),
}


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """The shapes of a state dict in OpenAI's layout.

    Raises:
        InputError: if it lacks the weights that tell.
    """
    try:
        text = {
            "text_depth": _count(state, "transformer.resblocks."),
            "text_width": state["ln_final.weight"].shape[0],
            "embed_dim": state["text_projection"].shape[1],
        }
        if is_resnet(state):
            grid = _grid(state["visual.attnpool.positional_embedding"])
            return Shapes(
                depths=tuple(_count(state, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)),
                width=state["visual.layer1.0.conv1.weight"].shape[0],
                patch_size=PATCHLESS,
                image_size=32 * grid,
                **text,
            )
        patch_size = state["visual.conv1.weight"].shape[-1]
        return Shapes(
            depths=(_count(state, "visual.transformer.resblocks."),),
            width=state["visual.conv1.weight"].shape[0],
            patch_size=patch_size,
            image_size=patch_size * _grid(state["visual.positional_embedding"]),
            **text,
        )
    except (KeyError, IndexError) as error:
        raise InputError(
            f"the checkpoint is no CLIP that can be recognised: it lacks a usable {error}, which tells its kind"
        ) from error


def recognise(state: Mapping[str, Tensor]) -> str:
    """The name of the architecture of a state dict in OpenAI's layout: a key of `ARCHITECTURES`.

    Raises:
        InputError: if it is none of them.
    """
    shapes = shapes_of(state)
    for name, known in ARCHITECTURES.items():
        if shapes == known:
            return name
    raise InputError(
        f"the checkpoint's shapes are those of no recognised CLIP ({', '.join(ARCHITECTURES)}): it has {shapes}; "
        "convert it to a transformers folder with the tools of whoever trained it"
    )


def config_for(name: str, vocab_size: int, num_positions: int, activation: str) -> CLIPConfig:
    """The transformers config of a recognised architecture.

    Args:
        name: A key of `ARCHITECTURES`.
        vocab_size: Rows of the token embedding; the last is EOS, the one before BOS, as in CLIP's vocabulary.
        num_positions: Rows of the text tower's positions.
        activation: `quick_gelu` or `gelu`.
    """
    shapes = ARCHITECTURES[name]
    text = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=shapes.text_width,
        intermediate_size=4 * shapes.text_width,
        num_hidden_layers=shapes.text_depth,
        num_attention_heads=shapes.text_width // HEAD_WIDTH,
        max_position_embeddings=num_positions,
        projection_dim=shapes.embed_dim,
        hidden_act=activation,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
    )
    parts: dict[str, Any] = {"text_config": text.to_dict(), "projection_dim": shapes.embed_dim}
    if shapes.patch_size == PATCHLESS:
        resnet = CLIPResNetVisionConfig(
            depths=list(shapes.depths),
            width=shapes.width,
            num_attention_heads=32 * shapes.width // HEAD_WIDTH,
            image_size=shapes.image_size,
            projection_dim=shapes.embed_dim,
        )
        return CLIPResNetConfig(vision_config=resnet.to_dict(), **parts)
    vit = CLIPVisionConfig(
        hidden_size=shapes.width,
        intermediate_size=4 * shapes.width,
        num_hidden_layers=shapes.depths[0],
        num_attention_heads=shapes.width // HEAD_WIDTH,
        image_size=shapes.image_size,
        patch_size=shapes.patch_size,
        projection_dim=shapes.embed_dim,
        hidden_act=activation,
    )
    return CLIPConfig(vision_config=vit.to_dict(), **parts)


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks are numbered after `prefix`."""
    numbers = [int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix)]
    return 1 + max(numbers, default=-1)


def _grid(positions: Tensor) -> int:
    """Side of the square of places that a table of positions has, the one for the class or mean left out."""
    return round((positions.shape[0] - 1) ** 0.5)
