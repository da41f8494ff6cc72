"""Every adapter on every CLIP of `adapter_table`: several of them, deleted, unloaded, copied.

Every test ends in something a user can see, logits or weights, against a base model that was never touched.
"""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_table import CLASSES, CONTEXT, OTHER_CLASSES, Row, assert_untouched, logits
from peft import PeftModel
from transformers import PreTrainedModel

from peft_cbpt import CBPTConfig


def test_several_adapters(model: PeftModel, pixels: torch.Tensor, row: Row, load_clip: Any, tmp_path: Path) -> None:
    first = logits(model, pixels)
    model.add_adapter("other", CBPTConfig(class_names=OTHER_CLASSES, num_context_tokens=2))
    assert torch.equal(logits(model, pixels), first)
    model.set_adapter("other")
    second = logits(model, pixels)
    assert second.shape == (len(pixels), len(OTHER_CLASSES))
    assert model.class_names == OTHER_CLASSES
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [f"base_model.model.{CONTEXT}.other"]
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(load_clip(row.clip), tmp_path)
    loaded.load_adapter(tmp_path / "other", "second")
    assert torch.equal(logits(loaded, pixels), first)
    loaded.set_adapter("second")
    assert torch.equal(logits(loaded, pixels), second)
    model.delete_adapter("default")
    assert torch.equal(logits(model, pixels), second)


def test_two_active_adapters_raise(
    model: PeftModel, base: PreTrainedModel, pixels: torch.Tensor, captions: Any
) -> None:
    model.add_adapter("other", CBPTConfig(class_names=OTHER_CLASSES))
    model.base_model.set_adapter(["default", "other"])
    for kwargs in ({}, captions):
        with pytest.raises(ValueError, match="default, other are active at once"):
            logits(model, pixels, **kwargs)
    with model.disable_adapter():
        assert torch.equal(logits(model, pixels, **captions), logits(base, pixels, **captions))
    model.set_adapter("default")
    assert logits(model, pixels).shape[1] == len(CLASSES)


def test_unload_gives_the_base_back(
    model: PeftModel, base: PreTrainedModel, pixels: torch.Tensor, captions: Any
) -> None:
    model.unload()
    unloaded = model.unload()
    assert_untouched(unloaded, base, pixels, captions)
    assert list(unloaded.state_dict()) == list(base.state_dict())
    assert repr(unloaded) == repr(base)


def test_deleting_the_last_adapter_gives_the_base_back(
    model: PeftModel, base: PreTrainedModel, clip: PreTrainedModel, pixels: torch.Tensor, captions: Any
) -> None:
    model.delete_adapter("default")
    assert_untouched(clip, base, pixels, captions)
    with pytest.raises(ValueError, match="No CBPT adapter is active"):
        model.class_prompt_ids()
    model.add_adapter("default", CBPTConfig(class_names=OTHER_CLASSES))
    model.set_adapter("default")
    assert logits(model, pixels).shape[1] == len(OTHER_CLASSES)


def test_merging_is_refused(model: PeftModel, pixels: torch.Tensor) -> None:
    expected = logits(model, pixels)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(NotImplementedError, match="cannot be merged"):
            merge()
    assert torch.equal(logits(model, pixels), expected)


def test_copies_are_independent(model: PeftModel, base: PreTrainedModel, pixels: torch.Tensor, captions: Any) -> None:
    expected = logits(model, pixels)
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(duplicate, pixels), expected)
        assert_untouched(duplicate.unload(), base, pixels, captions)
    assert torch.equal(logits(model, pixels), expected)
