"""What every adapter on every CLIP of `adapter_table` answers and learns.

Every test ends in something a user can see, logits or weights, against a base model that was never touched.
"""

import copy
from typing import Any

import pytest
import torch
from adapter_table import CLASSES, CONTEXT, Row, images_for, logits
from peft import PeftModel, get_peft_model
from tiny_clips import NUM_POSITIONS
from transformers import CLIPModel, PreTrainedModel, PreTrainedTokenizerBase

from peft_cbpt import CBPTConfig
from peft_cbpt.tuner.families import caption_ids, family_of, num_places


def by_hand(base: PreTrainedModel, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Eq. 8, one class at a time: puts the vectors themselves into the text tower.

    Prompts are as long as they are, but for SigLIP's, whose model cards ask for padding to the full length.
    """
    config = model.active_peft_config
    embedding = base.text_model.embeddings.token_embedding
    p = {"end": config.num_context_tokens, "middle": config.num_context_tokens // 2, "front": 0}
    p = p[config.class_token_position]
    features = []
    contexts = model.get_parameter(f"base_model.model.{CONTEXT}.default").expand(len(CLASSES), -1, -1)
    siglip = base.config.model_type.startswith("siglip")
    alone, whole = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    before, after = whole[: whole.index(alone[0])], whole[whole.index(alone[0]) + len(alone) :]
    for name, context in zip(CLASSES, contexts, strict=True):
        words = tokenizer(f"a {name}.", add_special_tokens=False).input_ids[len(alone) :]
        length = len(tokenizer(f"a {name}", add_special_tokens=False).input_ids) - len(alone)
        row = before + [0] * p + words[:length] + [0] * (len(context) - p) + words[length:] + after
        padding = [tokenizer.pad_token_id] * (NUM_POSITIONS - len(row)) if siglip else []
        left = tokenizer.padding_side == "left"
        ids, first = torch.tensor([padding + row if left else row + padding]), len(before) + left * len(padding)
        vectors = embedding(ids)
        vectors[0, first : first + p] = context[:p]
        vectors[0, first + p + length : first + length + len(context)] = context[p:]
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
    model: PeftModel, base: PreTrainedModel, pixels: torch.Tensor, row_tokenizer: PreTrainedTokenizerBase
) -> None:
    with torch.no_grad():
        text = by_hand(base, model, row_tokenizer)
        features = base.get_image_features(**images_for(base, pixels)).pooler_output
        image = torch.nn.functional.normalize(features, dim=-1)
        expected = image @ text.T * base.logit_scale.exp() + getattr(base, "logit_bias", 0)
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
        images = images_for(model, pixels)
        by_place = model(captions["input_ids"], images.pop("pixel_values"), **images)
        assert torch.equal(by_place.logits_per_image, expected)


def test_disabled_means_the_template(
    row: Row, model: PeftModel, base: PreTrainedModel, pixels: torch.Tensor, row_tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = caption_ids(base, row_tokenizer, [f"a photo of a {name}." for name in CLASSES])
    enabled = logits(model, pixels)
    with model.disable_adapter():
        disabled = logits(model, pixels)
        same = model.class_prompt_ids() == prompts
        assert (same | (prompts == row_tokenizer.pad_token_id)).all()
    torch.testing.assert_close(disabled, logits(base, pixels, input_ids=prompts), atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(model, pixels), enabled)
    assert torch.equal(enabled, disabled) == (row.config.get("context_init") == "template")


def test_words_before_the_prompts_stand_behind_bos(row: Row, model: PeftModel, base: PreTrainedModel) -> None:
    config, places = model.active_peft_config, num_places(base)
    first = 0 if config.bos_token_id is None else 1
    rows = [[*ids[:first], 5, 6, *ids[first:]] for ids in config.template_token_ids]
    if family_of(base).fills_prompts:
        padding = [[config.pad_token_id] * (places - len(ids)) for ids in rows]
        rows = [
            more + ids if config.padding_side == "left" else ids + more
            for ids, more in zip(rows, padding, strict=True)
        ]
    with torch.no_grad(), model.disable_adapter():
        found = model.encode_class_prompts(prefix_ids=[5, 6])
        expected = [base.get_text_features(torch.tensor([ids])).pooler_output[0] for ids in rows]
    torch.testing.assert_close(found, torch.nn.functional.normalize(torch.stack(expected)), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="has room for"):
        model.encode_class_prompts(prefix_ids=[5] * places)


def test_cutting_rows_is_exact_where_it_is_done_and_only_there(
    row: Row, base: PreTrainedModel, row_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Prompts are cut to the longest; a text tower that sees the whole row has other features then."""
    row_tokenizer.padding_side = "right"
    whole = row_tokenizer(["a cat."], padding="max_length", max_length=NUM_POSITIONS, return_tensors="pt").input_ids
    cut = row_tokenizer(["a cat."], return_tensors="pt").input_ids
    with torch.no_grad():
        first, second = (base.get_text_features(ids).pooler_output for ids in (whole, cut))
    far = 1 - torch.nn.functional.cosine_similarity(first, second).item()
    assert far > 1e-3 if family_of(base).fills_prompts else far < 1e-6


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
    plain.train().get_image_features(**images_for(plain, pixels))
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


def test_the_table_has_both_poolings(load_clip: Any) -> None:
    """Guards the table: one text tower pools at the highest id, another at its own EOS."""
    assert load_clip("clip-legacy-eos").text_model.eos_token_id == 2
    assert load_clip("clip").text_model.eos_token_id > 2
    assert isinstance(load_clip("batch-norm-subclass"), CLIPModel)
