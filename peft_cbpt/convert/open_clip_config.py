"""What `open_clip_config.json` says of a model and its weights do not."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft_cbpt.common.errors import InputError
from peft_cbpt.convert.checkpoint_arguments import INTERPOLATIONS, RESIZE_MODES

OPEN_CLIP_CONFIG = "open_clip_config.json"
# Options that change what is computed and are not seen in the weights, each with the value that a CLIP has.
PLAIN: dict[str, dict[str, Any]] = {
    "vision_cfg": {"pool_type": "tok", "final_ln_after_pool": False, "norm_kwargs": None, "act_kwargs": None},
    "text_cfg": {
        "pool_type": "argmax",
        "no_causal_mask": False,
        "final_ln_after_pool": False,
        "norm_kwargs": None,
        "act_kwargs": None,
    },
}


@dataclass(frozen=True)
class OpenClipSettings:
    """The config's content, as far as it is needed.

    Args:
        head_width: Of the image tower's attention.
        text_heads: Of the text tower.
        image_size: Side of the images.
        said: What `CheckpointArguments` would otherwise be asked for.
    """

    head_width: int | None = None
    text_heads: int | None = None
    image_size: int | None = None
    said: Mapping[str, Any] = field(default_factory=dict)


NOTHING_SAID = OpenClipSettings()


def read_open_clip_config(file: Path) -> OpenClipSettings:
    """Read the config of a plain CLIP.

    Raises:
        InputError: if it cannot be read, or is of a model that computes something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        model = content["model_cfg"]
        vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
        _check_plain({"vision_cfg": vision, "text_cfg": text}, file)
        return OpenClipSettings(
            vision.get("head_width"),
            text.get("heads"),
            _side(vision.get("image_size"), file),
            {
                "activation": "quick_gelu" if model.get("quick_gelu") else "gelu",
                **_images(content.get("preprocess_cfg", {}), file),
            },
        )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"cannot read {file}: {type(error).__name__}; give the weights' file instead") from error


def _check_plain(towers: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    for tower, plain in PLAIN.items():
        for option, value in plain.items():
            if (found := towers[tower].get(option, value)) != value:
                raise InputError(f"{file} has {option} {found} in {tower}, which no CLIP has and is not served")


def _side(size: Any, file: Path) -> int | None:
    sides = set(size) if isinstance(size, list) else {size}
    if len(sides) > 1:
        raise InputError(
            f"{file} is of a model for images of {size}, which are not square: only square ones are served"
        )
    return sides.pop()


def _images(images: Mapping[str, Any], file: Path) -> dict[str, Any]:
    said: dict[str, Any] = {f"image_{name}": list(images[name]) for name in ("mean", "std") if name in images}
    said |= {name: images[name] for name in ("interpolation", "resize_mode") if name in images}
    if said.get("interpolation") == "random":  # of training; OpenCLIP tests with the other
        said["interpolation"] = "bicubic"
    interpolation, mode = said.get("interpolation", "bicubic"), said.get("resize_mode", "shortest")
    if interpolation not in INTERPOLATIONS or mode not in RESIZE_MODES:
        raise InputError(f"images are resized by {interpolation} and {mode} in {file}, which is not served")
    return said
