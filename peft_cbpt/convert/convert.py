"""Other people's CLIP checkpoints to transformers folders, and back to OpenAI's layout."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerBase

from peft_cbpt.clip.loading import MODEL_TYPES
from peft_cbpt.clip.resnet import CLIPResNetConfig, CLIPResNetModel
from peft_cbpt.common.errors import InputError, first_line
from peft_cbpt.convert.architecture import check_family, config_of
from peft_cbpt.convert.checkpoints import read_weights
from peft_cbpt.convert.layout import is_bookkeeping, to_openai, to_transformers, without_text_module

OPENAI_FILE = "openai_state_dict.safetensors"
IMAGE_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TRANSFORMERS_FILES = ("model.safetensors", "pytorch_model.bin")
INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
DEFAULT_ACTIVATION = "quick_gelu"


@dataclass(frozen=True)
class Checkpoint:
    """A CLIP as it was found.

    Args:
        weights: In OpenAI's layout, float32, nothing but weights.
        config: The transformers config that goes with them.
        folder: The transformers folder it comes from, which also has tokenizer and image processor; else None.
    """

    weights: dict[str, Tensor]
    config: CLIPConfig
    folder: Path | None = None
    images: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `CLIPImageProcessor` where a checkpoint has others than OpenAI's."""

    @property
    def activation(self) -> str:
        """The text tower's activation."""
        text: Any = self.config.text_config
        return text.hidden_act


def read_checkpoint(source: str, activation: str | None = None, allow_unsafe: bool = False) -> Checkpoint:
    """Read a CLIP in OpenAI's, OpenCLIP's or transformers' layout.

    Args:
        source: A file (safetensors, torch pickle, TorchScript), or a folder of transformers or OpenCLIP.
        activation: `quick_gelu` or `gelu`, which the weights do not tell. By default a folder's config says it, and
            for a file it is `quick_gelu`, as in OpenAI's models.
        allow_unsafe: Also read files that run code when they are loaded.

    Raises:
        InputError: if it cannot be read, is no CLIP, or weights are missing, left over or not finite.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise InputError(f"there is no checkpoint {source}: give a file or a folder")
    said, files = OpenClipSettings(), [path]
    if path.is_dir():
        is_transformers = (path / "config.json").is_file() and not any(path.glob("open_clip_*model*"))
        if not is_transformers and (path / OPEN_CLIP_CONFIG).is_file():  # also beside a config.json in timm's form
            said, files = _open_clip_settings(path / OPEN_CLIP_CONFIG), _weight_files(path, OPEN_CLIP_FILES)
        elif (path / "config.json").is_file():
            return _read_transformers(path, activation, allow_unsafe)
        else:
            raise InputError(
                f"the folder {source} has no config.json or {OPEN_CLIP_CONFIG}: give the checkpoint's file"
            )
    weights = without_text_module(_read_all(files, allow_unsafe))
    check_family(weights)
    if any(name.startswith("vision_model.") for name in weights):
        weights = to_openai(weights)
    checkpoint = checkpoint_of(weights, activation or said.activation, str(path), said.head_width)
    return replace(checkpoint, images=said.images)


def checkpoint_of(
    weights: Mapping[str, Tensor],
    activation: str = DEFAULT_ACTIVATION,
    source: str = "the state dict",
    head_width: int | None = None,
) -> Checkpoint:
    """A state dict in OpenAI's layout as a checkpoint; `head_width` as of `architecture.config_of`.

    Raises:
        InputError: if it is no CLIP, or weights are missing, left over or not finite.
    """
    config = config_of(weights, activation, head_width)
    return Checkpoint(_checked(weights, config, source), config)


def build_model(checkpoint: Checkpoint) -> CLIPModel:
    """The checkpoint as a transformers model, float32, in eval mode."""
    weights = {name: value.contiguous() for name, value in to_transformers(checkpoint.weights).items()}
    norms = [name.removesuffix("running_mean") for name in weights if name.endswith("running_mean")]
    weights |= {f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms}
    model_class = CLIPResNetModel if isinstance(checkpoint.config, CLIPResNetConfig) else CLIPModel
    model: Any = model_class.from_pretrained(None, config=checkpoint.config, state_dict=weights)
    return model


def save_transformers(
    folder: Path, model: CLIPModel, checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write weights as float32 safetensors, config, tokenizer and image processor.

    Raises:
        InputError: if the tokenizer is not that of the weights.
    """
    text: Any = model.config.text_config
    vision: Any = model.config.vision_config
    if len(tokenizer) != text.vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} entries and the weights {text.vocab_size}: give the --tokenizer that "
            "the model was trained with"
        )
    image_processor = _image_processor(checkpoint, vision.image_size)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor.save_pretrained(folder)


def save_openai(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the weights in OpenAI's layout as one safetensors file, for code that builds on OpenAI's or OpenCLIP's."""
    save_file({name: value.contiguous() for name, value in checkpoint.weights.items()}, folder / OPENAI_FILE)


def _image_processor(checkpoint: Checkpoint, side: int) -> CLIPImageProcessorPil:
    """The folder's own, or CLIP's at the model's resolution where there is none."""
    folder = checkpoint.folder
    if folder is None or not any((folder / name).is_file() for name in IMAGE_PROCESSOR_FILES):
        settings: dict[str, Any] = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
        settings |= checkpoint.images
        if settings.pop("squash", False):
            settings["size"] = settings["crop_size"]
        return CLIPImageProcessorPil(**settings)
    try:
        return CLIPImageProcessorPil.from_pretrained(folder)
    except Exception as error:  # damaged files raise errors of many kinds
        raise InputError(f"cannot read the image processor in {folder}: {first_line(error)}") from error


def _read_transformers(folder: Path, activation: str | None, allow_unsafe: bool) -> Checkpoint:
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:  # damaged files raise errors of many kinds
        raise InputError(f"cannot read {folder / 'config.json'}: {first_line(error)}") from error
    if config.model_type not in MODEL_TYPES:
        raise InputError(f"{folder} is a {config.model_type!r} model, not a CLIP: give a CLIP checkpoint")
    if activation not in (None, config.text_config.hidden_act):
        raise InputError(
            f"the config of {folder} says {config.text_config.hidden_act}, not {activation}: mend it there"
        )
    weights = _read_all(_weight_files(folder, TRANSFORMERS_FILES), allow_unsafe)
    weights = _checked(to_openai(weights), config, str(folder))
    return Checkpoint(weights, config, folder)


def _weight_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """The first of the named files that is there, or the shards that its index lists; never some of two."""
    for name in names:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise InputError(f"cannot read {index}: download it again ({first_line(error)})") from error
            return sorted(folder / shard for shard in shards)
    raise InputError(f"the folder {folder} holds no weights: it has no {' or '.join(names)}")


def _read_all(files: Sequence[Path], allow_unsafe: bool) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= read_weights(file, allow_unsafe)
    return weights


@dataclass(frozen=True)
class OpenClipSettings:
    """What `open_clip_config.json` says and weights do not."""

    activation: str = DEFAULT_ACTIVATION
    head_width: int | None = None
    images: Mapping[str, Any] = field(default_factory=dict)


def _open_clip_settings(file: Path) -> OpenClipSettings:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        images, model = content.get("preprocess_cfg", {}), content["model_cfg"]
        return OpenClipSettings(
            "quick_gelu" if model.get("quick_gelu") else "gelu",
            model.get("vision_cfg", {}).get("head_width"),
            _image_settings(images, file),
        )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"cannot read {file}: {type(error).__name__}; give the weights' file instead") from error


def _image_settings(images: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """`preprocess_cfg` as settings of `CLIPImageProcessor`; `squash` for images that are not cropped."""
    settings: dict[str, Any] = {f"image_{name}": list(images[name]) for name in ("mean", "std") if name in images}
    interpolation, mode = images.get("interpolation", "bicubic"), images.get("resize_mode", "shortest")
    if interpolation not in INTERPOLATIONS or mode not in ("shortest", "squash"):
        raise InputError(f"images are resized by {interpolation} and {mode} in {file}, which is not served")
    return settings | {"resample": INTERPOLATIONS[interpolation], "squash": mode == "squash"}


def _checked(weights: Mapping[str, Tensor], config: CLIPConfig, source: str) -> dict[str, Tensor]:
    """The weights that the config asks for, all finite, none missing or left over, without bookkeeping.

    Raises:
        InputError: if they do not go together.
    """
    with torch.device("meta"):
        expected = to_openai(AutoModel.from_config(config).state_dict())
    expected = {name: value for name, value in expected.items() if not is_bookkeeping(name)}
    weights = {name: value for name, value in weights.items() if not is_bookkeeping(name)}
    if "logit_scale" in weights:
        weights["logit_scale"] = weights["logit_scale"].reshape(())  # some of OpenCLIP's have one dimension
    missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or unexpected:
        raise InputError(
            f"{source} does not go with its architecture: {len(missing)} missing ({_some(missing)}), "
            f"{len(unexpected)} unexpected ({_some(unexpected)})"
        )
    wrong = [name for name, value in expected.items() if value.shape != weights[name].shape]
    if wrong:
        shapes = f"{tuple(weights[wrong[0]].shape)} for {tuple(expected[wrong[0]].shape)}"
        raise InputError(f"{source} has {len(wrong)} weights of other shapes, such as {wrong[0]}: {shapes}")
    if broken := [name for name, value in weights.items() if not torch.isfinite(value).all()]:
        raise InputError(f"the weight {broken[0]} of {source} is not finite: the checkpoint is damaged")
    return weights


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"
