"""Every adapter on every CLIP of `adapter_table`, saved and loaded by PEFT and by Transformers.

Every test ends in something a user can see, logits or weights, against a base model that was never touched.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_table import CLASSES, CONTEXT, OTHER_CLASSES, Row, assert_untouched, logits
from peft import AutoPeftModel, PeftModel, get_peft_model
from transformers import AutoModel, PreTrainedModel

from peft_cbpt import CBPTConfig


@pytest.mark.parametrize("safe", [True, False])
def test_save_and_load(
    row: Row, model: PeftModel, pixels: torch.Tensor, load_clip: Any, tmp_path: Path, safe: bool
) -> None:
    model.save_pretrained(tmp_path, safe_serialization=safe)
    expected = logits(model, pixels)
    loaded = PeftModel.from_pretrained(load_clip(row.clip), tmp_path)
    assert torch.equal(logits(loaded, pixels), expected)
    assert loaded.class_names == CLASSES
    again = PeftModel.from_pretrained(load_clip(row.clip), tmp_path, is_trainable=True)
    assert [name for name, p in again.named_parameters() if p.requires_grad] == [f"base_model.model.{CONTEXT}.default"]


def test_auto_peft_model(model: PeftModel, pixels: torch.Tensor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = AutoPeftModel.from_pretrained(tmp_path)
    assert type(loaded.get_base_model()) is type(model.get_base_model())
    assert torch.equal(logits(loaded, pixels), logits(model, pixels))


def test_transformers_loads_the_adapter_by_itself(
    model: PeftModel, base: PreTrainedModel, clip: PreTrainedModel, row: Row, pixels: torch.Tensor,
    captions: Any, load_clip: Any, tmp_path: Path,
) -> None:  # fmt: skip
    model.save_pretrained(tmp_path)
    plain = load_clip(row.clip)
    plain.load_adapter(tmp_path)
    assert torch.equal(logits(plain, pixels), logits(model, pixels))
    assert torch.equal(logits(AutoModel.from_pretrained(tmp_path), pixels), logits(model, pixels))
    plain.disable_adapters()
    with model.disable_adapter():
        assert torch.equal(logits(plain, pixels), logits(model, pixels))
    plain.enable_adapters()
    assert torch.equal(logits(plain, pixels), logits(model, pixels))
    plain.delete_adapter("default")
    assert_untouched(plain, base, pixels, captions)


def test_transformers_adds_and_saves_the_adapter_by_itself(
    row: Row, clip: PreTrainedModel, pixels: torch.Tensor, load_clip: Any, tmp_path: Path
) -> None:
    clip.add_adapter(CBPTConfig(class_names=CLASSES, **row.config))
    clip.add_adapter(CBPTConfig(class_names=OTHER_CLASSES), "other")
    assert logits(clip, pixels).shape[1] == len(OTHER_CLASSES)
    clip.set_adapter("default")
    clip.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(load_clip(row.clip), tmp_path)
    assert torch.equal(logits(loaded, pixels), logits(clip, pixels))


@pytest.mark.parametrize(("dtype", "low_cpu_mem_usage"), [(torch.bfloat16, True), (torch.float16, False)])
def test_the_context_is_float32_over_a_half_precision_base(
    row: Row, model: PeftModel, pixels: torch.Tensor, load_clip: Any, tmp_path: Path, dtype: torch.dtype,
    low_cpu_mem_usage: bool,
) -> None:  # fmt: skip
    name = f"base_model.model.{CONTEXT}.default"
    exact = model.get_parameter(name)
    model.save_pretrained(tmp_path)
    half = load_clip(row.clip, dtype=dtype)
    loaded = PeftModel.from_pretrained(half, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(loaded.get_parameter(name), exact)
    assert logits(loaded, pixels.to(dtype)).dtype == dtype
    assert loaded.encode_class_prompts().dtype == torch.float32
    new = get_peft_model(load_clip(row.clip, dtype=dtype), CBPTConfig(class_names=CLASSES, **row.config))
    assert new.get_parameter(name).dtype == torch.float32
    new(pixel_values=pixels.to(dtype)).logits_per_image.sum().backward()
    assert new.get_parameter(name).grad.dtype == torch.float32
    plain = load_clip(row.clip, dtype=dtype)
    plain.load_adapter(tmp_path)
    assert torch.equal(plain.get_parameter(f"{CONTEXT}.default"), exact)


def test_a_fresh_process_needs_no_tokenizer(load_clip: Any, pixels: torch.Tensor, tmp_path: Path) -> None:
    """The two lines of the model card, in another process, with a base model without tokenizer."""
    clip = load_clip("clip")
    model = get_peft_model(clip, CBPTConfig(class_names=CLASSES)).eval()
    model.save_pretrained(tmp_path / "adapter")
    load_clip("clip").save_pretrained(tmp_path / "base")
    torch.save({"pixels": pixels, "logits": logits(model, pixels)}, tmp_path / "expected.pt")
    program = """
import torch
import peft_cbpt
from peft import PeftModel
from transformers import CLIPModel
model = PeftModel.from_pretrained(CLIPModel.from_pretrained("base"), "adapter")
expected = torch.load("expected.pt", weights_only=True)
assert torch.equal(model(pixel_values=expected["pixels"]).logits_per_image, expected["logits"])
"""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
