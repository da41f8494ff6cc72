"""The shipped CLIPs: those of the pocket world, which `recipes/pretrain_pocket.py` made, and one of photographs."""

import copy
from pathlib import Path

from transformers import CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerBase

from peft_cbpt.clip.loading import LoadedCLIP, load_clip, wrap_clip
from peft_cbpt.common.errors import InputError
from peft_cbpt.convert.checkpoint_arguments import NOTHING_GIVEN, CheckpointArguments
from peft_cbpt.convert.opening import transformers_folder
from peft_cbpt.pocket.atlas import ASSETS

SHIPPED_MODELS = {
    "pocket:clean": ASSETS / "clip-clean",
    "pocket:badnet": ASSETS / "clip-badnet",
    "pocket:resnet-badnet": ASSETS / "clip-resnet-badnet",
    "pocket:siglip-badnet": ASSETS / "clip-siglip-badnet",
    "photos:resnet": ASSETS.parents[1] / "photos" / "assets" / "clip-resnet",
}


def resolve_model(name_or_path: str) -> str:
    """The folder of a shipped model, such as `pocket:clean`; anything else is returned as it is."""
    if not name_or_path.startswith(("pocket:", "photos:")):
        return name_or_path
    if name_or_path not in SHIPPED_MODELS:
        raise InputError(f"there is no shipped model {name_or_path!r}; choose one of {', '.join(SHIPPED_MODELS)}")
    return str(SHIPPED_MODELS[name_or_path])


def open_clip(
    model: str | LoadedCLIP | CLIPModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    image_processor: CLIPImageProcessorPil | None = None,
    checkpoint: CheckpointArguments | None = None,
) -> LoadedCLIP:
    """A CLIP by name (a folder, a file, a Hub id or `pocket:NAME`), or one that is loaded already; see `clip.loading`.

    `checkpoint` says what a file does not tell of itself.

    Raises:
        InputError: if there is none, or settings are given that have no effect on it.
    """
    checkpoint = checkpoint or NOTHING_GIVEN
    if not isinstance(model, str) and checkpoint.given():
        raise InputError(
            "the model is loaded already: settings of a checkpoint have no effect, give its image processor"
        )
    if isinstance(model, LoadedCLIP):
        return model
    if isinstance(model, str):
        return load_clip(transformers_folder(resolve_model(model), checkpoint))
    return wrap_clip(model, tokenizer, image_processor)


def save_clip_folder(
    folder: str | Path,
    model: CLIPModel,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: CLIPImageProcessorPil,
) -> None:
    """Write a normal HF folder: weights as fp16 safetensors, tokenizer and image processor."""
    copy.deepcopy(model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor.save_pretrained(folder)
