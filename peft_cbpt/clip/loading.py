"""Loading a suspicious CLIP from a folder or the Hub, safely and with readable errors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerBase,
)

from peft_cbpt.clip.pixels import PixelNormalizer
from peft_cbpt.clip.resnet import CLIPResNetConfig
from peft_cbpt.common.errors import InputError, first_line

MODEL_TYPES = (CLIPConfig.model_type, CLIPResNetConfig.model_type)


@dataclass(frozen=True)
class LoadedCLIP:
    """A CLIP with everything needed to feed it."""

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
        text_config: Any = self.model.config.text_config
        return text_config.max_position_embeddings

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
    if looks_local and not Path(name_or_path).is_dir():
        raise InputError(f"there is no folder {name_or_path}: give the folder of a saved CLIP, or a Hub id")
    try:
        config = AutoConfig.from_pretrained(name_or_path)
    except Exception as error:  # damaged files raise errors of many kinds
        raise InputError(
            f"cannot read the config of the model {name_or_path!r}: give the folder of a saved CLIP or a Hub id that "
            f"can be reached ({first_line(error)})"
        ) from error
    if config.model_type not in MODEL_TYPES:
        raise InputError(
            f"{name_or_path} is a {config.model_type!r} model, not a CLIP: give a CLIPModel or CLIPResNetModel"
        )
    try:
        loaded: Any = AutoModel.from_pretrained(
            name_or_path,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
        model, report = loaded
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        image_processor = CLIPImageProcessorPil.from_pretrained(name_or_path)
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
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise InputError(f"the weight {name} of {name_or_path} is not finite: the checkpoint is damaged")
    return LoadedCLIP(model.eval(), tokenizer, image_processor)


def _check_image_processor(model: CLIPModel, image_processor: CLIPImageProcessorPil, name: str) -> None:
    vision: Any = model.config.vision_config
    side = vision.image_size
    crop = image_processor.crop_size
    if (crop["height"], crop["width"]) != (side, side):
        raise InputError(f"the image processor of {name} must crop to the {side} pixels of the model: mend crop_size")
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
    if not isinstance(model, CLIPModel):
        raise InputError(f"model must be a name, a CLIPModel or a LoadedCLIP, not a {type(model).__name__}")
    try:
        place = model.name_or_path or ""
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(place)
        image_processor = image_processor or CLIPImageProcessorPil.from_pretrained(place)
    except Exception as error:
        raise InputError(
            f"no tokenizer or image processor is found for the model ({first_line(error)}): give both"
        ) from error
    _check_image_processor(model, image_processor, model.name_or_path or "the model")
    return LoadedCLIP(model.eval(), tokenizer, image_processor)
