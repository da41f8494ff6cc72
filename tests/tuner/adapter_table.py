"""Every adapter on every CLIP: the rows that each operation is tested on."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from peft_cbpt.tuner.families import image_inputs

CLASSES = ["cat", "dog", "sea lion", "kite (bird)"]
OTHER_CLASSES = ["ant", "bee"]
CONTEXT = "text_model.embeddings.token_embedding.cbpt_context"


@dataclass
class Row:
    name: str
    clip: str = "clip"
    config: dict[str, Any] = field(default_factory=dict)


ROWS = [
    Row("end"),
    Row("middle", config={"class_token_position": "middle", "num_context_tokens": 3}),
    Row("front", config={"class_token_position": "front", "num_context_tokens": 2}),
    Row("one context token", config={"num_context_tokens": 1, "init_std": 1.0}),
    Row("template", config={"context_init": "template"}),
    Row("unified", config={"unified_context": True}),
    Row("unified, template", config={"unified_context": True, "context_init": "template"}),
    Row("end, legacy EOS", "clip-legacy-eos"),
    Row("middle, legacy EOS", "clip-legacy-eos", {"class_token_position": "middle"}),
    Row("template, legacy EOS", "clip-legacy-eos", {"context_init": "template"}),
    Row("batch norm subclass", "batch-norm-subclass", {"class_token_position": "front"}),
    Row("ResNet", "clip-resnet", {"class_token_position": "middle"}),
    Row("CLIPSeg", "clipseg"),
    Row("SigLIP", "siglip"),
    Row("SigLIP, template", "siglip", {"context_init": "template"}),
    Row("SigLIP 2, middle", "siglip2", {"class_token_position": "middle"}),
    Row("MetaCLIP 2", "metaclip2"),
    Row("MetaCLIP 2, template", "metaclip2", {"context_init": "template"}),
]


def images_for(model: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a base model takes; SigLIP 2 has patches."""
    return image_inputs(model.get_base_model() if isinstance(model, PeftModel) else model, pixels)


def logits(model: Any, pixels: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """Of captions with their images as the base takes them, or of pixels alone."""
    images = images_for(model, pixels) if kwargs else {"pixel_values": pixels}
    with torch.no_grad():
        return model(**images, **kwargs).logits_per_image


def assert_untouched(clip: PreTrainedModel, base: PreTrainedModel, pixels: torch.Tensor, captions: Any) -> None:
    """`clip` answers as `base` does, with captions and without."""
    assert torch.equal(logits(clip, pixels, **captions), logits(base, pixels, **captions))
    for model in (clip, base):
        with pytest.raises((ValueError, AttributeError), match="specify input_ids|no attribute 'size'"):
            model(**images_for(model, pixels))
    assert len(clip._forward_pre_hooks) == len(clip.vision_model._forward_pre_hooks) == 0
