"""Which CLIP a checkpoint holds, read off the shapes of its weights and never off a name."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from peft_cbpt.clip.resnet import CLIPResNetConfig, CLIPResNetVisionConfig
from peft_cbpt.common.errors import InputError
from peft_cbpt.convert.layout import is_resnet
from peft_cbpt.convert.open_clip_config import NOTHING_SAID, OpenClipSettings

HEAD_WIDTH = 64
WIDER_HEADS = {1280: 80, 1408: 88, 1664: 104}
"""Width of the attention heads of ViT-H, g and bigG by the image tower's width; the weights do not tell."""


FAMILIES = {
    "visual.trunk.attn_pool.": "a SigLIP in OpenCLIP's form, of which only folders of transformers are served",
    "vision_model.head.": "a SigLIP, of which only whole folders of transformers are served",
    "visual.trunk.": "a CLIP with an image tower of timm, such as EVA or MobileCLIP, which is not served",
    "visual.blocks.": "an EVA-CLIP, which is not served",
    "text_decoder.": "a CoCa, which is not served",
    "transformer.embeddings.": "a CLIP with a BERT for its text, such as AltCLIP, which is not served",
    "bert.": "a ChineseCLIP, which is not served",
}
"""What a part of a weight's name tells of models that are not plain CLIPs."""


def check_family(state: Mapping[str, Tensor]) -> None:
    """Raises an InputError for a model of another family than plain CLIPs."""
    for part, family in FAMILIES.items():
        if name := next((name for name in state if f".{part}" in f".{name}"), None):
            raise InputError(f"the checkpoint is {family}: it has {name}")


def config_of(state: Mapping[str, Tensor], activation: str, settings: OpenClipSettings = NOTHING_SAID) -> CLIPConfig:
    """The transformers config of a state dict in OpenAI's layout.

    Args:
        state: The weights.
        activation: `quick_gelu` or `gelu`.
        settings: Head widths and image size, where a config tells them. By default heads are 64 wide, in a ViT as
            wide as those of H, g or bigG for towers of their widths; images are as large as the grid of patches.

    Raises:
        InputError: if it lacks the weights that tell, or is no CLIP that transformers can hold.
    """
    try:
        width = state["ln_final.weight"].shape[0]
        vocab_size, projection_dim = state["token_embedding.weight"].shape[0], state["text_projection"].shape[1]
        text = CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            num_hidden_layers=_count(state, "transformer.resblocks."),
            num_attention_heads=settings.text_heads or _heads(width, HEAD_WIDTH),
            max_position_embeddings=state["positional_embedding"].shape[0],
            projection_dim=projection_dim,
            hidden_act=activation,
            bos_token_id=vocab_size - 2,  # as in CLIP's vocabulary
            eos_token_id=vocab_size - 1,
            pad_token_id=vocab_size - 1,
        )
        parts: dict[str, Any] = {"text_config": text.to_dict(), "projection_dim": projection_dim}
        if is_resnet(state):
            width = state["visual.layer1.0.conv1.weight"].shape[0]
            resnet = CLIPResNetVisionConfig(
                depths=[_count(state, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)],
                width=width,
                num_attention_heads=_heads(32 * width, HEAD_WIDTH),
                image_size=32 * _grid(state["visual.attnpool.positional_embedding"]),
                projection_dim=projection_dim,
            )
            return CLIPResNetConfig(vision_config=resnet.to_dict(), **parts)
        width, _, patch_size, _ = state["visual.conv1.weight"].shape
        vit = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=state["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            num_hidden_layers=_count(state, "visual.transformer.resblocks."),
            num_attention_heads=_heads(width, settings.head_width or WIDER_HEADS.get(width, HEAD_WIDTH)),
            image_size=_image_size(settings.image_size, patch_size, _grid(state["visual.positional_embedding"])),
            patch_size=patch_size,
            projection_dim=projection_dim,
            hidden_act=activation,
        )
        return CLIPConfig(vision_config=vit.to_dict(), **parts)
    except (KeyError, IndexError) as error:
        raise InputError(
            f"the checkpoint is no CLIP that can be recognised: it lacks a usable {error}, which tells its kind"
        ) from error


def described(config: CLIPConfig) -> str:
    """A tower in words, such as `ViT of 12 layers of 768, patches of 32, images of 224`."""
    vision: Any = config.vision_config
    if isinstance(config, CLIPResNetConfig):
        blocks = "-".join(map(str, vision.depths))
        return f"ResNet of {blocks} blocks from {vision.width} channels, images of {vision.image_size}"
    layers = f"{vision.num_hidden_layers} layers of {vision.hidden_size}"
    return f"ViT of {layers}, patches of {vision.patch_size}, images of {vision.image_size}"


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks are numbered after `prefix`."""
    numbers = [int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix)]
    return 1 + max(numbers, default=-1)


def _image_size(said: int | None, patch_size: int, grid: int) -> int:
    """Side of the images: patches may leave a rest at their border, which only a config tells."""
    if said is not None and said // patch_size != grid:
        raise InputError(
            f"the weights have {grid} x {grid} patches of {patch_size}, but the config says images of {said}"
        )
    return said or patch_size * grid


def _heads(width: int, head_width: int) -> int:
    if width % head_width:
        raise InputError(f"a tower of width {width} has no heads of {head_width}: the checkpoint is no plain CLIP")
    return width // head_width


def _grid(positions: Tensor) -> int:
    """Side of the square of places that a table of positions has, the one for the class or mean left out."""
    places = positions.shape[0] - 1
    side = round(places**0.5)
    if side**2 != places:
        raise InputError(f"the image tower has {places} places, which are no square: only square images are served")
    return side
