"""Loading a suspicious CLIP from a folder or the Hub, safely and with readable errors."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Siglip2ImageProcessorPil,
    SiglipImageProcessorPil,
)

from peft_cbpt.clip.pixels import PixelNormalizer
from peft_cbpt.common.errors import InputError, first_line
from peft_cbpt.tuner.families import FAMILIES, caption_ids, family_of, image_side, num_places

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model")


@dataclass(frozen=True)
class LoadedCLIP:
    """A CLIP of any family in `tuner.families` with everything needed to feed it."""

    model: CLIPModel
    tokenizer: PreTrainedTokenizerBase
    image_processor: CLIPImageProcessorPil

    @property
    def normalize(self) -> PixelNormalizer:
        """The model's own normalisation of [0, 1] pixels."""
        return PixelNormalizer(tuple(self.image_processor.image_mean), tuple(self.image_processor.image_std))

    @property
    def max_text_length(self) -> int:
        """Tokens that the text tower has positions for."""
        return num_places(self.model)

    def caption_ids(self, captions: Sequence[str]) -> Tensor:
        """Token ids (n, L) of captions, as the text tower wants them."""
        return caption_ids(self.model, self.tokenizer, captions)

    def word_ids(self, text: str) -> list[int]:
        """Token ids of a text without BOS and EOS."""
        return self.tokenizer(text, add_special_tokens=False).input_ids if text else []


def load_clip(name_or_path: str) -> LoadedCLIP:
    """Load weights (safetensors only, in float32), tokenizer and image processor.

    Raises:
        InputError: if there is nothing there, if it is not a CLIP, or if its weights are damaged, incomplete or not
            finite.
    """
    looks_local = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    if looks_local or Path(name_or_path).exists():
        _check_folder(Path(name_or_path))
    try:
        model_type = PreTrainedConfig.get_config_dict(name_or_path)[0]["model_type"]
    except Exception as error:  # damaged files raise errors of many kinds
        raise InputError(
            f"cannot read the config of the model {name_or_path!r}: give the folder of a saved CLIP or a Hub id that "
            f"can be reached ({first_line(error)})"
        ) from error
    check_served(model_type, name_or_path)
    try:
        loaded: Any = AutoModel.from_pretrained(
            name_or_path,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
        model, report = loaded
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        image_processor = load_image_processor(name_or_path, model)
    except Exception as error:
        raise InputError(
            f"cannot load the CLIP in {name_or_path}: download or save it again with its safetensors weights, "
            f"tokenizer and image processor ({first_line(error)})"
        ) from error
    _check_image_processor(model, image_processor, name_or_path)
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"the checkpoint {name_or_path} lacks {len(missing)} weights, such as {missing[0]}: it is incomplete"
        )
    if left := sorted(report["unexpected_keys"]):
        warnings.warn(
            f"weights of {name_or_path} that its model has no place for are left out: {', '.join(left)}", stacklevel=2
        )
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise InputError(f"the weight {name} of {name_or_path} is not finite: the checkpoint is damaged")
    return LoadedCLIP(model.eval(), tokenizer, image_processor)


def _check_folder(folder: Path) -> None:
    """What is missing in a folder, before the libraries say it in their words."""
    convert = f"`peft-cbpt convert {folder} --output_dir DIR`"
    if folder.is_file():
        raise InputError(f"{folder} is a file: make a folder of it with {convert}, and give DIR")
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give the folder of a saved CLIP, or a Hub id")
    if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder} has its weights in a pickle: make a folder with safetensors with {convert}")
    if (folder / "config.json").exists() and not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise InputError(
            f"{folder} has no tokenizer ({' or '.join(TOKENIZER_FILES)}): copy it from the model that it was "
            f"made from, or use {convert[:-1]} --tokenizer NAME`"
        )
    if not (folder / "config.json").exists():
        raise InputError(f"{folder} has no config.json: give the folder that a CLIP was saved in")


def check_served(model_type: str, name: str) -> None:
    """Raises an InputError for a model of another family than those of `tuner.families`."""
    if model_type not in FAMILIES:
        served = ", ".join(FAMILIES)
        raise InputError(
            f"{name} is a {model_type!r} model, not a CLIP of a kind that is served: give one of {served}"
        )


def load_image_processor(name_or_path: str, model: Any) -> Any:
    """A model's own image processor. That of SigLIP 2 gives patches: in its place comes one of square images,
    the middle of what is given, in the size that fills the places of the model.
    """
    family = family_of(model)
    if family.takes_patches:
        own = Siglip2ImageProcessorPil.from_pretrained(name_or_path)
        square = {"height": image_side(model), "width": image_side(model)}
        return CLIPImageProcessorPil(
            size={"shortest_edge": image_side(model)},
            crop_size=square,
            resample=own.resample,
            image_mean=own.image_mean,
            image_std=own.image_std,
        )
    kind = SiglipImageProcessorPil if family.fills_prompts else CLIPImageProcessorPil
    return kind.from_pretrained(name_or_path)


def _check_image_processor(model: CLIPModel, image_processor: CLIPImageProcessorPil, name: str) -> None:
    side = image_side(model)
    cropped = getattr(image_processor, "do_center_crop", None)
    given = image_processor.crop_size if cropped else image_processor.size
    if (given["height"], given["width"]) != (side, side):
        what = "crop to" if cropped else "resize to both sides of"
        raise InputError(f"the image processor of {name} must {what} the {side} pixels of the model: mend it")
    if not image_processor.image_mean or not image_processor.image_std:
        raise InputError(f"the image processor of {name} lacks image_mean or image_std: add them")


def wrap_clip(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None = None,
    image_processor: CLIPImageProcessorPil | None = None,
) -> LoadedCLIP:
    """A CLIP that is loaded already, with tokenizer and image processor as given or found where it came from.

    Raises:
        InputError: if it is no CLIP, or either is neither given nor found, or does not fit.
    """
    if getattr(getattr(model, "config", None), "model_type", None) not in FAMILIES and not isinstance(
        model, CLIPModel
    ):
        raise InputError(f"model must be a name, a CLIP of transformers or a LoadedCLIP, not a {type(model).__name__}")
    try:
        place = model.name_or_path or ""
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(place)
        image_processor = image_processor or load_image_processor(place, model)
    except Exception as error:
        raise InputError(
            f"no tokenizer or image processor is found for the model ({first_line(error)}): give both"
        ) from error
    _check_image_processor(model, image_processor, model.name_or_path or "the model")
    return LoadedCLIP(model.eval(), tokenizer, image_processor)
