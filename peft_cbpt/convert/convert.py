"""Other people's CLIP checkpoints to transformers folders, and back to OpenAI's layout."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerBase

from peft_cbpt.clip.resnet import CLIPResNetConfig, CLIPResNetModel
from peft_cbpt.common.errors import InputError, first_line
from peft_cbpt.convert.architecture import check_family, config_of
from peft_cbpt.convert.checkpoint_arguments import INTERPOLATIONS, NOTHING_GIVEN, CheckpointArguments
from peft_cbpt.convert.checkpoints import Found, read_weights, weight_files
from peft_cbpt.convert.layout import is_bookkeeping, is_part, to_openai, to_transformers, unwrapped
from peft_cbpt.convert.open_clip_config import NOTHING_SAID, OPEN_CLIP_CONFIG, OpenClipSettings, read_open_clip_config

OPENAI_FILE = "openai_state_dict.safetensors"
IMAGE_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TRANSFORMERS_FILES = ("model.safetensors", "pytorch_model.bin")
IMAGE_SETTINGS = {"image_mean", "image_std", "interpolation", "resize_mode"}
CONVERTED = (CLIPConfig.model_type, CLIPResNetConfig.model_type)
DEFAULT_ACTIVATION = "quick_gelu"


@dataclass(frozen=True)
class Checkpoint:
    """A CLIP as it was found.

    Args:
        weights: In OpenAI's layout, float32, nothing but weights.
        config: The transformers config that goes with them.
        folder: The transformers folder it comes from, which also has tokenizer and image processor; else None.
        known: What is known of its images, as `CheckpointArguments` calls it.
        notes: What had to be assumed, chosen or left out, a sentence each.
    """

    weights: dict[str, Tensor]
    config: CLIPConfig
    folder: Path | None = None
    known: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def activation(self) -> str:
        """The text tower's activation."""
        text: Any = self.config.text_config
        return text.hidden_act


def read_checkpoint(
    source: str, arguments: CheckpointArguments = NOTHING_GIVEN, allow_unsafe: bool = False
) -> Checkpoint:
    """Read a CLIP in OpenAI's, OpenCLIP's or transformers' layout.

    Args:
        source: A file (safetensors, torch pickle, TorchScript), or a folder of transformers or OpenCLIP.
        arguments: What a file does not tell of itself.
        allow_unsafe: Also read files that run code when they are loaded.

    Raises:
        InputError: if it cannot be read, is no CLIP, or weights are missing, left over or not finite, or if something
            is given of which its config says otherwise.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise InputError(f"there is no checkpoint {source}: give a file or a folder")
    config_file, files = None, [path]
    if path.is_dir():
        of_open_clip = (path / OPEN_CLIP_CONFIG).is_file()
        if not of_open_clip or (is_transformers(path) and not any(path.glob("open_clip_*model*"))):
            return _read_transformers(path, arguments, allow_unsafe)
        config_file, files = path / OPEN_CLIP_CONFIG, weight_files(path, OPEN_CLIP_FILES)
    found = _read_all(files, allow_unsafe, arguments.weights_key)
    check_family(found.weights)
    settings = read_open_clip_config(config_file) if config_file else NOTHING_SAID
    known = arguments.beside(settings.said, str(config_file or path))
    weights = unwrapped(found.weights, str(path))
    if any(name.startswith("vision_model.") for name in weights):
        weights = to_openai(weights)
    checkpoint = checkpoint_of(weights, known.get("activation", DEFAULT_ACTIVATION), str(path), settings)
    notes = (*found.notes, *checkpoint.notes, *_assumed(known, path.name))
    return replace(checkpoint, known=known, notes=notes)


def checkpoint_of(
    weights: Mapping[str, Tensor],
    activation: str = DEFAULT_ACTIVATION,
    source: str = "the state dict",
    settings: OpenClipSettings = NOTHING_SAID,
) -> Checkpoint:
    """A state dict in OpenAI's layout as a checkpoint.

    Raises:
        InputError: if it is no CLIP, or weights are missing, left over or not finite.
    """
    config = config_of(weights, activation, settings)
    return _checked(weights, config, source)


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


def is_transformers(folder: Path) -> bool:
    """Whether a folder has a config in transformers' form; timm writes a `config.json`, too."""
    try:
        return "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _image_processor(checkpoint: Checkpoint, side: int) -> CLIPImageProcessorPil:
    """The folder's own, or CLIP's at the model's resolution with what is known of the images."""
    if (folder := checkpoint.folder) is not None and _has_image_processor(folder):
        try:
            return CLIPImageProcessorPil.from_pretrained(folder)
        except Exception as error:  # damaged files raise errors of many kinds
            raise InputError(f"cannot read the image processor in {folder}: {first_line(error)}") from error
    known, square = checkpoint.known, {"height": side, "width": side}
    settings = {name: known[name] for name in ("image_mean", "image_std") if name in known}
    if "interpolation" in known:
        settings["resample"] = INTERPOLATIONS[known["interpolation"]]
    settings["size"] = square if known.get("resize_mode") == "squash" else {"shortest_edge": side}
    return CLIPImageProcessorPil(crop_size=square, **settings)


def _has_image_processor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in IMAGE_PROCESSOR_FILES)


def _assumed(known: Mapping[str, Any], name: str) -> list[str]:
    notes = []
    if "activation" not in known:
        notes.append(
            f"nothing says the activation of {name}: quick_gelu is taken, as in OpenAI's models; give activation gelu "
            "for OpenCLIP models whose name lacks quickgelu"
        )
    if not {"image_mean", "image_std"} <= known.keys():
        notes.append(
            f"nothing says how images of {name} were normalised: OpenAI's mean and standard deviation are taken; give "
            "image_mean and image_std if they were others"
        )
    return notes


def _read_transformers(folder: Path, arguments: CheckpointArguments, allow_unsafe: bool) -> Checkpoint:
    if not (folder / "config.json").is_file():
        raise InputError(f"the folder {folder} has no config.json or {OPEN_CLIP_CONFIG}: give the checkpoint's file")
    if not is_transformers(folder):
        raise InputError(
            f"the config.json in {folder} is not of transformers, and {OPEN_CLIP_CONFIG} is missing: give the file "
            "of the weights of a CLIP"
        )
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:  # damaged files raise errors of many kinds
        raise InputError(f"cannot read {folder / 'config.json'}: {first_line(error)}") from error
    if config.model_type not in CONVERTED:
        raise InputError(f"{folder} is a {config.model_type!r} model, not a CLIP: give a CLIP checkpoint")
    known = arguments.beside({"activation": config.text_config.hidden_act}, f"the config of {folder}")
    if has_images := _has_image_processor(folder):
        if without_effect := sorted(arguments.given().keys() & IMAGE_SETTINGS):
            raise InputError(f"{folder} has an image processor, so {without_effect[0]} has no effect: mend that")
    found = _read_all(weight_files(folder, TRANSFORMERS_FILES), allow_unsafe, arguments.weights_key)
    checkpoint = _checked(to_openai(unwrapped(found.weights, str(folder))), config, str(folder))
    notes = (*found.notes, *checkpoint.notes, *([] if has_images else _assumed(known, folder.name)))
    return replace(checkpoint, folder=folder, known=known, notes=notes)


def _read_all(files: Sequence[Path], allow_unsafe: bool, key: str | None) -> Found:
    parts = [read_weights(file, allow_unsafe, key) for file in files]
    weights = {name: value for part in parts for name, value in part.weights.items()}
    return Found(weights, tuple(note for part in parts for note in part.notes))


def _checked(weights: Mapping[str, Tensor], config: CLIPConfig, source: str) -> Checkpoint:
    """The weights that the config asks for, all finite, none missing or left over, without bookkeeping and heads.

    Raises:
        InputError: if they do not go together.
    """
    with torch.device("meta"):
        expected = to_openai(AutoModel.from_config(config).state_dict())
    expected = {name: value for name, value in expected.items() if not is_bookkeeping(name)}
    heads = sorted(name for name in weights if not is_part(name) and not is_bookkeeping(name))
    weights = {name: value for name, value in weights.items() if is_part(name) and not is_bookkeeping(name)}
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
    notes = (f"weights that are no part of a CLIP are left out: {', '.join(heads)}",) if heads else ()
    return Checkpoint(weights, config, notes=notes)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"
