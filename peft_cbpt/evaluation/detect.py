"""Flag triggered images at test time, with a purified CLIP and a few clean images."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerBase

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.common.errors import InputError
from peft_cbpt.data.unlabelled import AnyImages, UnlabelledImages
from peft_cbpt.detection.input_detector import FALSE_POSITIVE_RATE, Threshold, conformal_threshold, trigger_scores
from peft_cbpt.evaluation.classifiers import beside_undefended
from peft_cbpt.evaluation.measure import encode_in_batches
from peft_cbpt.pocket.model import open_clip
from peft_cbpt.tuner import CBPTConfig


@dataclass(frozen=True)
class Detected:
    """What is said of images.

    Args:
        sample_ids: Of the images that could be read, in the order given.
        scores: The higher the more like a triggered image, (N,); see `detection.input_detector.trigger_scores`.
        threshold: From the clean images; its `level` is the false-positive rate that it keeps.
    """

    sample_ids: list[str]
    scores: Tensor
    threshold: Threshold

    @property
    def flagged(self) -> Tensor:
        """Whether an image is taken for a triggered one, bool (N,)."""
        return self.scores > self.threshold.value


def detect(
    model: PeftModel,
    images: AnyImages,
    clean_images: AnyImages,
    *,
    class_name: str | None = None,
    false_positive_rate: float = FALSE_POSITIVE_RATE,
    tokenizer: PreTrainedTokenizerBase | None = None,
    image_processor: CLIPImageProcessorPil | None = None,
) -> Detected:
    """Flag images on which the undefended head is sure of a class that the purified head denies.

    Args:
        model: The CLIP with its CBPT adapter, as `purify` gives it.
        images: What to look at: a folder, a dataset, pixels in [0, 1], PIL images.
        clean_images: Clean images that the adapter was not tuned on, 99 or more for the default rate.
        class_name: The class that a scan found, if it found one.
        false_positive_rate: Share of clean images that may be flagged, in (0, 1).
        tokenizer: Of the model, where it is not found under the model's name.
        image_processor: Likewise.

    Raises:
        InputError: if the model has no CBPT adapter or does not know the class, or images cannot be had.
    """
    if not isinstance(model, PeftModel) or not isinstance(model.active_peft_config, CBPTConfig):
        raise InputError("detect compares a CBPT adapter with the prompts it replaces: give a PeftModel that has one")
    label = class_label(list(model.class_names), class_name)
    base: Any = model.get_base_model()
    clip = open_clip(base, tokenizer, image_processor)
    suspicious, clean = (UnlabelledImages(one, clip.image_processor) for one in (images, clean_images))
    suspicious.order.sort()
    encode, heads = beside_undefended(model, clip)
    device = clip.model.device
    threshold = conformal_threshold(
        trigger_scores(features_of(encode, clean, device), heads, label), false_positive_rate
    )
    scores = trigger_scores(features_of(encode, suspicious, device), heads, label)
    return Detected([suspicious[row]["sample_id"] for row in range(len(suspicious))], scores, threshold)


def class_label(class_names: list[str], class_name: str | None) -> int | None:
    """Where a class is among those known; None for none.

    Raises:
        InputError: if it is not among them.
    """
    if class_name is None:
        return None
    if class_name not in class_names:
        raise InputError(f"the class {class_name!r} is not among the {len(class_names)} classes: name one of these")
    return class_names.index(class_name)


def features_of(encode: EncodeImage, images: UnlabelledImages, device: torch.device, batch_size: int = 64) -> Tensor:
    """Features (N, D) of images, on the CPU, by an encoder on `device`."""
    with torch.no_grad():
        return encode_in_batches(encode, images.pixels().to(device), batch_size)
