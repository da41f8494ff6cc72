"""Adapters that also repair the image tower: one file, two lines, and the base as it was when they are off."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_table import CLASSES, OTHER_CLASSES, assert_untouched, images_for, logits
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_clips import tokenizer_of
from transformers import PreTrainedModel

from peft_cbpt import CBPTConfig, with_encoder
from peft_cbpt.training.encoder_lora import image_tower_lora
from peft_cbpt.tuner.encoder import FOLDER, encoder_settings, save_encoder
from peft_cbpt.tuner.families import caption_ids
from peft_cbpt.tuner.fingerprint import encoder_fingerprint, weights_fingerprint

VARIANTS = ("clip", "clip-resnet", "siglip")


def image_features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    with torch.no_grad():
        return base.get_image_features(**images_for(base, pixels.to(base.dtype))).pooler_output


def trained_lora(clip: PreTrainedModel, seed: int = 0) -> PeftModel:
    """As `purify_encoder` leaves it: a LoRA that changes every layer of the image tower."""
    torch.manual_seed(seed)
    lora = get_peft_model(clip, image_tower_lora(clip, 2)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return lora


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def captions(variant: str, load_clip: Any) -> dict[str, torch.Tensor]:
    return {"input_ids": caption_ids(load_clip(variant), tokenizer_of(variant), ["a photo of a cat.", "two ants"])}


def both(load_clip: Any, variant: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PeftModel:
    return with_encoder(trained_lora(load_clip(variant, dtype), seed), CBPTConfig(class_names=CLASSES))


def close(first: torch.Tensor, second: torch.Tensor, dtype: torch.dtype) -> bool:
    return torch.allclose(first.float(), second.float(), atol=1e-5 if dtype == torch.float32 else 0.1, rtol=1e-3)


def test_two_lines_give_prompts_on_the_repaired_encoder(
    variant: str, dtype: torch.dtype, load_clip: Any, pixels: torch.Tensor, tmp_path: Path
) -> None:
    pixels = pixels.to(dtype)
    repaired = image_features(trained_lora(load_clip(variant, dtype)), pixels)
    model = both(load_clip, variant, dtype)
    assert torch.equal(image_features(model, pixels), repaired)
    assert not torch.equal(repaired, image_features(load_clip(variant, dtype), pixels))
    model.save_pretrained(tmp_path / "first")
    loaded = PeftModel.from_pretrained(load_clip(variant, dtype), tmp_path / "first")
    assert torch.equal(logits(loaded, pixels), logits(model, pixels))
    loaded.save_pretrained(tmp_path / "again")
    for name, value in load_file(tmp_path / "first" / "adapter_model.safetensors").items():
        assert torch.equal(load_file(tmp_path / "again" / "adapter_model.safetensors")[name], value)
    frugal = PeftModel.from_pretrained(load_clip(variant, dtype), tmp_path / "first", low_cpu_mem_usage=True)
    assert close(logits(frugal, pixels), logits(model, pixels), dtype)
    assert not any(parameter.is_meta for parameter in frugal.parameters())


def test_off_means_neither_prompts_nor_repair(
    variant: str, dtype: torch.dtype, load_clip: Any, pixels: torch.Tensor, captions: Any
) -> None:
    pixels, base = pixels.to(dtype), load_clip(variant, dtype)
    model = both(load_clip, variant, dtype)
    assert not torch.equal(logits(model, pixels, **captions), logits(base, pixels, **captions))
    with model.disable_adapter():
        assert torch.equal(image_features(model, pixels), image_features(base, pixels))
        assert torch.equal(logits(model, pixels, **captions), logits(base, pixels, **captions))
    assert not torch.equal(logits(model, pixels, **captions), logits(base, pixels, **captions))
    unloaded = model.unload()
    assert_untouched(unloaded, base, pixels, captions)
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in unloaded.state_dict().items())
    assert list(unloaded.state_dict()) == list(base.state_dict())


def test_adapters_with_and_without_a_repair_in_one_model(
    variant: str, load_clip: Any, pixels: torch.Tensor, captions: Any, tmp_path: Path
) -> None:
    base = load_clip(variant)
    both(load_clip, variant, seed=1).save_pretrained(tmp_path / "other")
    model = both(load_clip, variant)
    first = logits(model, pixels)
    model.load_adapter(str(tmp_path / "other"), "other")
    model.add_adapter("prompts", CBPTConfig(class_names=OTHER_CLASSES))
    assert torch.equal(logits(model, pixels), first)
    model.set_adapter("other")
    expected = PeftModel.from_pretrained(load_clip(variant), tmp_path / "other")
    assert torch.equal(logits(model, pixels), logits(expected, pixels))
    model.set_adapter("prompts")
    assert torch.equal(image_features(model, pixels), image_features(base, pixels))
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(learning) == 1 and learning[0].endswith("cbpt_context.prompts")
    model.delete_adapter("prompts")
    assert model.active_adapters == ["default"] and torch.equal(logits(model, pixels), first)
    model.delete_adapter("default")
    assert torch.equal(logits(model, pixels), logits(expected, pixels))
    clip = model.get_base_model()
    model.delete_adapter("other")
    assert torch.equal(logits(clip, pixels, **captions), logits(base, pixels, **captions))


def test_only_the_prompts_learn_and_copies_are_whole(variant: str, load_clip: Any, pixels: torch.Tensor) -> None:
    model = both(load_clip, variant)
    before = copy.deepcopy(model.state_dict())
    model.train()
    assert not any(module.training for module in model.get_base_model().vision_model.modules())
    model.set_adapter("default")
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "lora_" in name)
    model(pixel_values=pixels).logits_per_image[:, 0].sum().backward()
    with_gradient = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert with_gradient == [name for name in before if "cbpt_context" in name]
    model.eval()
    assert torch.equal(logits(copy.deepcopy(model), pixels), logits(model, pixels))


def test_transformers_own_loading_leaves_no_encoder_unrepaired(
    load_clip: Any, pixels: torch.Tensor, tmp_path: Path
) -> None:
    """It does not know LoRA in an adapter of another kind, and says so in a log only."""
    both(load_clip, "clip").save_pretrained(tmp_path)
    plain = load_clip("clip")
    plain.load_adapter(str(tmp_path))
    with pytest.raises(ValueError, match="PeftModel.from_pretrained"):
        logits(plain, pixels)


def test_the_encoder_alone_is_a_plain_lora(
    variant: str, load_clip: Any, pixels: torch.Tensor, captions: Any, tmp_path: Path
) -> None:
    model = both(load_clip, variant)
    save_encoder(model, "default", tmp_path / FOLDER)
    alone = PeftModel.from_pretrained(load_clip(variant), tmp_path, subfolder=FOLDER)
    assert isinstance(alone.active_peft_config, LoraConfig)
    assert torch.equal(image_features(alone, pixels), image_features(model, pixels))
    merged = alone.merge_and_unload()
    torch.testing.assert_close(image_features(merged, pixels), image_features(model, pixels), atol=1e-4, rtol=1e-3)


def test_fingerprints(variant: str, load_clip: Any) -> None:
    base, model, other = load_clip(variant), both(load_clip, variant), both(load_clip, variant, seed=1)
    assert weights_fingerprint(model.get_base_model()) == weights_fingerprint(base)
    found = {encoder_fingerprint(one) for one in (base, model.get_base_model(), other.get_base_model())}
    assert len(found) == 3
    prompts = get_peft_model(load_clip(variant), CBPTConfig(class_names=CLASSES))
    assert encoder_fingerprint(prompts.get_base_model()) == encoder_fingerprint(base)


def test_an_adapter_without_a_repair_says_nothing_of_one(load_clip: Any, tmp_path: Path) -> None:
    get_peft_model(load_clip(), CBPTConfig(class_names=CLASSES)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["encoder_lora"] is None
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 1


def test_exports_are_of_the_repaired_encoder(load_clip: Any, pixels: torch.Tensor, tmp_path: Path) -> None:
    model = both(load_clip, "siglip")
    model.export("text_features", tmp_path)
    text = load_file(tmp_path / "text_features.safetensors")["text_features"]
    alone = PeftModel.from_pretrained(load_clip("siglip"), tmp_path, subfolder=FOLDER)
    images = torch.nn.functional.normalize(image_features(alone, pixels), dim=-1)
    base: Any = model.get_base_model()
    expected = images @ text.T * base.logit_scale.exp() + base.logit_bias
    torch.testing.assert_close(logits(model, pixels), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"r": 2, "target_modules": ["nowhere"]}, "no layers of the base"),
        ({"r": 2, "target_modules": ["q_proj"]}, "for the image tower"),
        ({"rank": 2}, "settings of a peft.LoraConfig"),
        ({"r": 2, "target_modules": ["visual_projection"], "bias": "all"}, "plain LoRA"),
    ],
)
def test_other_loras_are_refused(settings: dict[str, Any], complaint: str, load_clip: Any) -> None:
    with pytest.raises(ValueError, match=complaint):
        get_peft_model(load_clip(), CBPTConfig(class_names=CLASSES, encoder_lora=settings))


def test_weights_that_do_not_fit_are_refused(load_clip: Any, tmp_path: Path) -> None:
    model = both(load_clip, "clip")
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: value for name, value in weights.items() if "layers.0" not in name}, file)
    with pytest.raises(ValueError, match="weights for the image tower"):
        PeftModel.from_pretrained(load_clip(), tmp_path)
    save_file({name: value for name, value in weights.items() if "lora" in name}, file)
    with pytest.raises(ValueError, match="cbpt_context of shape"):
        PeftModel.from_pretrained(load_clip(), tmp_path)


def test_settings_are_what_differs_from_the_default(load_clip: Any) -> None:
    settings = encoder_settings(LoraConfig(r=4, lora_alpha=4, target_modules=["visual_projection"]))
    assert settings == {"r": 4, "lora_alpha": 4, "target_modules": ["visual_projection"]}
    assert json.loads(json.dumps(encoder_settings(image_tower_lora(load_clip(), 2))))["r"] == 2
    with pytest.raises(ValueError, match="has a LoRA, not CBPT"):
        with_encoder(get_peft_model(load_clip(), CBPTConfig(class_names=CLASSES)), CBPTConfig(class_names=CLASSES))
