"""Every mistake gets a message that names it: tables of configs, tokenizers, base models and weights."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_clips import make_other_tokenizer, tokenizer_of
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedModel,
)

from peft_cbpt import CBPTConfig

CLASSES = ["cat", "dog"]
TINY = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}

CONFIGS = [
    ({"class_names": "cat"}, "must be a list of strings, not str"),
    ({"class_names": {"cat": 0, "dog": 1}}, "must be a list of strings, not dict"),
    ({"class_names": ["cat", 1]}, r"class_names\[1\] must be a string, not int"),
    ({"class_names": []}, "class_names is empty"),
    ({"class_names": ["cat", ""]}, r"class_names\[1\] is blank"),
    ({"class_names": ["cat", " \t"]}, r"class_names\[1\] is blank"),
    ({"class_names": ["cat"]}, "one class only, 'cat'"),
    ({"class_names": ["sea lion", "dog", " sea  lion"]}, "'sea lion' more than once"),
    ({"num_context_tokens": 0}, "num_context_tokens must be at least 1, not 0"),
    ({"class_token_position": "last"}, "must be one of end, middle, front, not 'last'"),
    ({"context_init": "zeros"}, "must be one of normal, template, not 'zeros'"),
    ({"init_std": 0.0}, "init_std must be positive, not 0.0"),
    ({"init_std": float("nan")}, "init_std must be positive, not nan"),
    ({"template": "a photo"}, "exactly one '{}'.*'a photo' does not"),
    ({"template": "{} and {}."}, "exactly one '{}'"),
    ({"context_init": "template", "class_token_position": "front"}, "needs class_token_position='end'"),
    ({"context_init": "template", "template": "a {} photo."}, "ends with '{}.'"),
    ({"class_names": CLASSES, "eos_token_id": 1}, "belong together, but class_token_ids, .* is missing"),
    (
        {
            "class_names": ["cat", "dog", "ant"],
            "class_token_ids": [[1], [2]],
            "class_name_lengths": [1, 1],
            "template_token_ids": [[0, 1, 3], [0, 2, 3]],
            "bos_token_id": 0,
            "eos_token_id": 3,
        },
        "class_token_ids has 2 entries for 3 class_names",
    ),
]

TOKENIZED = [
    ({}, "has no class_names"),
    ({"class_names": ["Cat", "cat"]}, "'Cat' and 'cat' have the same tokens"),
    ({"class_names": ["cat", "d0g"]}, "does not know every word of 'a photo of a d0g.'"),
    ({"class_names": ["cat", "<|endoftext|>"]}, "reads a special token"),
    ({"class_names": CLASSES, "template": "4 {}."}, "does not know every word of '4 cat.'"),
    (
        {"class_names": CLASSES, "context_init": "template", "num_context_tokens": 3},
        "set num_context_tokens to 4, not 3",
    ),
    (
        {"class_names": ["to", "dog"], "context_init": "template", "template": "pho{}."},
        "cannot start class 'to' from its template prompt",
    ),
    (
        {"class_names": ["cat", "a cat with a very long name"]},
        "learned prompt of class 'a cat with a very long name' has 26 tokens.*24 positions",
    ),
    ({"class_names": CLASSES, "num_context_tokens": 21}, "learned prompt of class 'cat' has 25 tokens"),
    (
        {"class_names": CLASSES, "template": "a very very very long photo of {}."},
        "template prompt of class 'dog' has 25 tokens",
    ),
    (
        {"class_names": CLASSES, "tokenizer_name_or_path": "/nowhere/to/be/found"},
        "Found no tokenizer at '/nowh",
    ),
]

BASES: list[tuple[str, Callable[[], torch.nn.Module], str]] = [
    ("bert", lambda: BertModel(BertConfig(**TINY, vocab_size=9)), "BertModel has no text_model.embeddings"),
    (
        "text tower",
        lambda: CLIPTextModel(CLIPTextConfig(**TINY, vocab_size=9)),
        "CLIPTextModel has no text_mo",
    ),
    (
        "text tower with projection",
        lambda: CLIPTextModelWithProjection(CLIPTextConfig(**TINY, vocab_size=9)),
        "has no vision_model, get_text_features",
    ),
    ("not of transformers", lambda: torch.nn.Linear(2, 2), "Linear has no text_model.embeddings"),
]


@pytest.mark.parametrize(("kwargs", "message"), CONFIGS)
def test_wrong_configs(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CBPTConfig(**kwargs)


@pytest.mark.parametrize(("kwargs", "message"), TOKENIZED)
def test_configs_that_do_not_go_with_the_model(
    kwargs: dict[str, Any], message: str, load_clip: Callable[..., PreTrainedModel]
) -> None:
    clip = load_clip()
    with pytest.raises(ValueError, match=message):
        get_peft_model(clip, CBPTConfig(**kwargs))
    assert not clip._forward_pre_hooks
    assert isinstance(clip.text_model.embeddings.token_embedding, torch.nn.Embedding)


@pytest.mark.parametrize(("make", "message"), [row[1:] for row in BASES], ids=[row[0] for row in BASES])
def test_wrong_base_models(make: Callable[[], torch.nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_peft_model(make(), CBPTConfig(class_names=CLASSES))


def test_a_base_without_a_name_needs_a_tokenizer(load_clip: Any, tokenizer: CLIPTokenizer) -> None:
    clip = type(load_clip())(load_clip().config)
    clip.name_or_path = ""
    with pytest.raises(ValueError, match="no name_or_path to load a tokenizer from. Pass tokenizer_name_or_path"):
        get_peft_model(clip, CBPTConfig(class_names=CLASSES))
    config = CBPTConfig(class_names=CLASSES).tokenize(tokenizer)
    assert get_peft_model(clip, config).class_names == CLASSES


def test_a_base_folder_without_tokenizer(load_clip: Any, tmp_path: Path) -> None:
    load_clip().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Found no tokenizer at .*Pass tokenizer_name_or_path"):
        get_peft_model(load_clip().from_pretrained(tmp_path), CBPTConfig(class_names=CLASSES))


def test_a_tokenizer_of_another_model(load_clip: Any, tokenizer: CLIPTokenizer) -> None:
    config = CBPTConfig(class_names=CLASSES).tokenize(tokenizer)
    clip = load_clip()
    clip.text_model.eos_token_id = 5
    with pytest.raises(ValueError, match="with token 68, but the text tower pools at its eos_token_id 5"):
        get_peft_model(clip, config)
    clip = load_clip("clip-legacy-eos")
    config.class_token_ids[1][0] = 90
    with pytest.raises(ValueError, match="class 'dog' has token 90, but the base model knows 69 tokens"):
        get_peft_model(clip, config)
    clip.text_model.resize_token_embeddings(91)
    with pytest.raises(ValueError, match="highest token .* class 'dog' that is 90 and not the tokenizer's EOS 68"):
        get_peft_model(clip, config)


def test_a_tokenizer_that_does_not_end_texts(load_clip: Any) -> None:
    config = CBPTConfig(class_names=CLASSES).tokenize(tokenizer_of("siglip2"))
    with pytest.raises(ValueError, match="with token None, but the text tower pools at its eos_token_id 68"):
        get_peft_model(load_clip(), config)
    with pytest.raises(ValueError, match="puts at most BOS before a text .* puts the tokens .0, 0. and .2."):
        CBPTConfig(class_names=CLASSES).tokenize(make_other_tokenizer("<s> <s> $A </s>"))


@pytest.mark.parametrize(
    ("indices", "error"),
    [
        ([2], IndexError),
        ([-1], IndexError),
        ([], ValueError),
        ([[0, 1]], ValueError),
        ([0.5], ValueError),
        (torch.tensor([True, False]), ValueError),
        (1, ValueError),
    ],
)
def test_wrong_class_indices(indices: Any, error: type[Exception], load_clip: Any) -> None:
    model = get_peft_model(load_clip(), CBPTConfig(class_names=CLASSES))
    with pytest.raises(error, match="class_indices"):
        model.class_prompt_ids(indices)


def _another_number_of_classes(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    config["class_names"] = ["ant", "bee", "cow"]
    for name in ("class_token_ids", "class_name_lengths", "template_token_ids"):
        config[name] = [config[name][0]] * 3
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _another_number_of_context_tokens(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "num_context_tokens": 2}))


def _another_width(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({key: value[..., :8].clone() for key, value in weights.items()}, folder / "adapter_model.safetensors")


def _no_context(folder: Path) -> None:
    save_file({"something.else": torch.ones(1)}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_another_number_of_classes, r"need a cbpt_context of shape \(3, 4, 16\).*has \[\(2, 4, 16\)\]"),
        (_another_number_of_context_tokens, r"shape \(2, 2, 16\).*has \[\(2, 4, 16\)\]"),
        (_another_width, r"shape \(2, 4, 16\).*has \[\(2, 4, 8\)\]"),
        (_no_context, r"shape \(2, 4, 16\).*has none"),
    ],
)
def test_weights_that_do_not_fit(damage: Any, message: str, load_clip: Any, tmp_path: Path) -> None:
    get_peft_model(load_clip(), CBPTConfig(class_names=CLASSES)).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(load_clip(), tmp_path)
    if damage is not _no_context:  # which transformers reports as MISSING and leaves at that
        with pytest.raises(RuntimeError, match="size mismatch|mismatched"):
            load_clip().load_adapter(tmp_path)


def test_class_names_of_a_saved_adapter_cannot_be_edited(load_clip: Any, tmp_path: Path) -> None:
    get_peft_model(load_clip(), CBPTConfig(class_names=CLASSES)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "class_names": ["a", "b", "c"]}))
    with pytest.raises(ValueError, match="class_token_ids has 2 entries for 3 class_names"):
        PeftModel.from_pretrained(load_clip(), tmp_path)


CALLS: list[tuple[dict[str, Any], str]] = [
    ({}, "pixel_values is missing"),
    ({"input_ids": torch.ones(2, 8, dtype=torch.long)}, "pixel_values is missing"),
    ({"attention_mask": torch.ones(2, 8)}, "pixel_values is missing"),
    ({"pixel_values": torch.zeros(0, 3, 48, 48)}, r"at least one image, not \(0, 3, 48, 48\)"),
    ({"pixel_values": torch.zeros(3, 48, 48)}, r"must be \(B, 3, H, W\)"),
    ({"pixel_values": torch.zeros(2, 3, 48, 48), "return_loss": True}, "leave it out"),
]


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("call, message", CALLS)
def test_a_call_that_class_prompts_cannot_answer_says_so(poisoned_clip: Any, call: Any, message: str, enabled: bool):
    config = CBPTConfig(class_names=CLASSES).tokenize(poisoned_clip.tokenizer)
    model = get_peft_model(poisoned_clip.model, config)
    with nullcontext() if enabled else model.disable_adapter(), pytest.raises(ValueError, match=message):
        model(**call)
