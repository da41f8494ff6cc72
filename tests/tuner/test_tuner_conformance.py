"""What every adapter on every CLIP has to do: a table of both, and one test for each operation.

Every test ends in something a user can see, logits or weights, against a base model that was never touched.
"""

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModel, PeftModel, get_peft_model
from transformers import AutoModel, CLIPModel, CLIPTokenizer, PreTrainedModel

from peft_cbpt import CBPTConfig

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
]


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.fixture
def base(row: Row, load_clip: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """The base model, never touched."""
    return load_clip(row.clip)


@pytest.fixture
def clip(row: Row, load_clip: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """The same base model, to be given adapters."""
    return load_clip(row.clip)


@pytest.fixture
def model(row: Row, clip: PreTrainedModel) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(clip, CBPTConfig(class_names=CLASSES, **row.config)).eval()


@pytest.fixture
def captions(tokenizer: CLIPTokenizer) -> dict[str, torch.Tensor]:
    return tokenizer(["a photo of a cat.", "two ants (red)"], padding=True, return_tensors="pt")


def logits(model: Any, pixels: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(pixel_values=pixels, **kwargs).logits_per_image


def assert_untouched(clip: PreTrainedModel, base: PreTrainedModel, pixels: torch.Tensor, captions: Any) -> None:
    """`clip` answers as `base` does, with captions and without."""
    assert torch.equal(logits(clip, pixels, **captions), logits(base, pixels, **captions))
    for model in (clip, base):
        with pytest.raises(ValueError, match="specify input_ids"):
            model(pixel_values=pixels)
    assert len(clip._forward_pre_hooks) == len(clip.vision_model._forward_pre_hooks) == 0


def by_hand(base: PreTrainedModel, model: PeftModel, tokenizer: CLIPTokenizer) -> torch.Tensor:
    """Eq. 8, one class at a time and without padding: puts the vectors themselves into the text tower."""
    config = model.active_peft_config
    embedding = base.text_model.embeddings.token_embedding
    p = {"end": config.num_context_tokens, "middle": config.num_context_tokens // 2, "front": 0}
    p = p[config.class_token_position]
    features = []
    contexts = model.get_parameter(f"base_model.model.{CONTEXT}.default").expand(len(CLASSES), -1, -1)
    for name, context in zip(CLASSES, contexts, strict=True):
        words = tokenizer(f"{name}.", add_special_tokens=False).input_ids
        length = len(tokenizer(name, add_special_tokens=False).input_ids)
        bos, eos = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
        before, after = [0] * p, [0] * (len(context) - p)
        ids = torch.tensor([bos + before + words[:length] + after + words[length:] + eos])
        vectors = embedding(ids)
        vectors[0, 1 : 1 + p] = context[:p]
        vectors[0, 1 + p + length : 1 + length + len(context)] = context[p:]
        hook = embedding.register_forward_hook(lambda *_, vectors=vectors: vectors)
        features.append(base.get_text_features(ids).pooler_output)
        hook.remove()
    return torch.nn.functional.normalize(torch.cat(features), dim=-1)


def test_only_the_context_is_new_and_learns(row: Row, model: PeftModel, base: PreTrainedModel) -> None:
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert list(trainable) == [f"base_model.model.{CONTEXT}.default"]
    context = trainable.popitem()[1]
    num_context_tokens = row.config.get("num_context_tokens", 4)
    num_contexts = 1 if row.config.get("unified_context") else len(CLASSES)
    assert context.shape == (num_contexts, num_context_tokens, base.config.text_config.hidden_size)
    assert context.dtype == torch.float32
    assert len(model.state_dict()) == len(base.state_dict()) + 1


def test_pixels_alone_give_logits_over_the_classes(
    model: PeftModel, base: PreTrainedModel, pixels: torch.Tensor, tokenizer: CLIPTokenizer
) -> None:
    with torch.no_grad():
        text = by_hand(base, model, tokenizer)
        image = torch.nn.functional.normalize(base.get_image_features(pixels).pooler_output, dim=-1)
        expected = image @ text.T * base.logit_scale.exp()
        torch.testing.assert_close(logits(model, pixels), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.encode_class_prompts(), text, atol=1e-6, rtol=1e-5)
    assert model.class_names == CLASSES
    in_order = logits(model, pixels)
    with torch.no_grad():
        assert torch.equal(model(None, pixels).logits_per_image, in_order)
    assert torch.equal(logits(model, pixels, input_ids=model.class_prompt_ids()), in_order)


def test_captions_stay_bit_identical(
    model: PeftModel, base: PreTrainedModel, pixels: torch.Tensor, captions: Any
) -> None:
    expected = logits(base, pixels, **captions)
    assert torch.equal(logits(model, pixels, **captions), expected)
    with torch.no_grad():
        assert torch.equal(model(captions["input_ids"], pixels).logits_per_image, expected)


def test_disabled_means_the_template(
    row: Row, model: PeftModel, base: PreTrainedModel, pixels: torch.Tensor, tokenizer: CLIPTokenizer
) -> None:
    prompts = tokenizer([f"a photo of a {name}." for name in CLASSES], padding=True, return_tensors="pt")
    enabled = logits(model, pixels)
    with model.disable_adapter():
        disabled = logits(model, pixels)
        assert torch.equal(model.class_prompt_ids(), prompts.input_ids)
    torch.testing.assert_close(disabled, logits(base, pixels, **prompts), atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(model, pixels), enabled)
    assert torch.equal(enabled, disabled) == (row.config.get("context_init") == "template")


def test_training_moves_the_context_and_nothing_else(model: PeftModel, pixels: torch.Tensor) -> None:
    before = copy.deepcopy(model.state_dict())
    labels = torch.tensor([0, 1, 2, 3, 0])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    model.train()
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(model(pixel_values=pixels).logits_per_image, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == [f"base_model.model.{CONTEXT}.default"]


def test_every_class_learns_from_its_own_prompt_only(model: PeftModel) -> None:
    context = model.get_parameter(f"base_model.model.{CONTEXT}.default")
    model.encode_class_prompts([2])[:, 0].sum().backward()
    assert context.grad is not None
    learned = context.grad.flatten(1).abs().sum(1).gt(0).tolist()
    assert learned == ([True] if len(context) == 1 else [False, False, True, False])


def test_the_same_prompts_in_any_company(model: PeftModel) -> None:
    with torch.no_grad():
        features = model.encode_class_prompts()
        for indices in ([3, 1], torch.tensor([0, 0, 2])):
            torch.testing.assert_close(model.encode_class_prompts(indices), features[indices])
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(CLASSES)))


def test_chunks_give_the_same_features_and_gradients(model: PeftModel) -> None:
    context = model.get_parameter(f"base_model.model.{CONTEXT}.default")
    whole, chunked = model.encode_class_prompts(), model.encode_class_prompts(chunk_size=3)
    torch.testing.assert_close(chunked, whole)
    grads = [torch.autograd.grad(features[:, :3].sum(), context)[0] for features in (whole, chunked)]
    torch.testing.assert_close(grads[1], grads[0])


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
            model(pixel_values=pixels, **kwargs)
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


def test_the_vision_tower_stays_in_eval_mode(
    row: Row, model: PeftModel, clip: PreTrainedModel, pixels: torch.Tensor, load_clip: Any
) -> None:
    model.train()
    assert clip.text_model.training and not any(m.training for m in clip.vision_model.modules())
    model.eval()
    assert not clip.text_model.training
    plain = load_clip(row.clip)
    plain.add_adapter(CBPTConfig(class_names=CLASSES, **row.config))
    before = copy.deepcopy(plain.vision_model.state_dict())
    plain.train()(pixel_values=pixels)
    plain.train().get_image_features(pixels)
    for name, value in plain.vision_model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_global_seed_makes_the_context(row: Row, load_clip: Any, pixels: torch.Tensor) -> None:
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        config = CBPTConfig(class_names=CLASSES, **row.config)
        results.append(logits(get_peft_model(load_clip(row.clip), config), pixels))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2]) == (row.config.get("context_init") == "template")


def test_init_std_scales_the_context(load_clip: Any) -> None:
    contexts = []
    for init_std in (0.02, 0.04):
        torch.manual_seed(0)
        config = CBPTConfig(class_names=[f"{a} {b}" for a in "abcdefgh" for b in "abcdefgh"], init_std=init_std)
        contexts.append(get_peft_model(load_clip(), config).get_parameter(f"base_model.model.{CONTEXT}.default"))
    assert contexts[0].std().item() == pytest.approx(0.02, rel=0.1)
    torch.testing.assert_close(contexts[1], 2 * contexts[0])


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


def test_the_table_has_both_poolings(load_clip: Any) -> None:
    """Guards the table: one text tower pools at the highest id, another at its own EOS."""
    assert load_clip("clip-legacy-eos").text_model.eos_token_id == 2
    assert load_clip("clip").text_model.eos_token_id > 2
    assert isinstance(load_clip("batch-norm-subclass"), CLIPModel)
