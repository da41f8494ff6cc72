"""Purified prompts without PEFT: a matrix of text features, or a plain CLIP that knows the context as words."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AddedToken, AutoImageProcessor, BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from peft_cbpt.tuner.config import CBPTConfig
from peft_cbpt.tuner.encoder import repaired_weights
from peft_cbpt.tuner.families import family_of
from peft_cbpt.tuner.fingerprint import base_state
from peft_cbpt.tuner.layer import CBPTEmbedding

KINDS = ("text_features", "clip")
FEATURES_FILE = "text_features.safetensors"
CLASSES_FILE = "classes.json"
SHARED = "context"
EMBEDDING = "text_model.embeddings.token_embedding.weight"


def write_text_features(folder: Path, features: torch.Tensor, logit_scale: float, class_names: list[str]) -> None:
    """Writes the classifier's head: `text_features.safetensors`, and `classes.json` to go with it.

    Args:
        folder: Where to write; it exists.
        features: Unit-norm float32 (n_classes, projection_dim).
        logit_scale: What cosines are multiplied by, the temperature of Eq. 12.
        class_names: The names of the rows.
    """
    save_file({"text_features": features.cpu().contiguous()}, folder / FEATURES_FILE)
    write_classes(folder, class_names=class_names, logit_scale=logit_scale)


def write_clip(
    folder: Path,
    base: Any,
    adapter_name: str,
    config: CBPTConfig,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: BaseImageProcessor,
) -> None:
    """Writes a CLIP whose vocabulary holds the context vectors, with tokenizer, image processor and `classes.json`.

    Args:
        folder: Where to write; it exists.
        base: The CLIP with a `CBPTEmbedding` in it; it is not changed.
        adapter_name: Whose context to write.
        config: The config of that adapter.
        tokenizer: The tokenizer of the base model; it is not changed.
        image_processor: The image processor of the base model.

    Raises:
        ValueError: if the base is of a class that transformers does not ship, of another family than CLIP, or if the
            prompt of a class cannot be written as text.
    """
    if type(base).__module__.split(".")[0] != "transformers":
        raise ValueError(
            f"The base model is a {type(base).__name__}, which transformers alone cannot load: export "
            "kind='text_features' instead."
        )
    if (family := family_of(base).name) != "CLIP":
        raise ValueError(
            f"The base model is a {family}, which is not written as one: export kind='text_features' instead."
        )
    layer: CBPTEmbedding = base.text_model.embeddings.token_embedding
    class_names, num_context_tokens = config.class_names or [], config.num_context_tokens
    tokenizer = copy.deepcopy(tokenizer)
    owners = [SHARED] if config.unified_context else class_names
    words = [context_word(owner, i) for owner in owners for i in range(num_context_tokens)]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary[word] for word in words]
    owner = SHARED if config.unified_context else "{0}"
    template = prompt_template(num_context_tokens, config.class_token_position, owner)
    wanted = [
        [ids[-1 - token] if token < 0 else token for token in row] for row in layer.class_prompts[adapter_name].learned
    ]
    for name, row in zip(class_names, wanted, strict=True):
        if tokenizer(template.format(name))["input_ids"] != row:
            raise ValueError(
                f"The prompt of class {name!r} cannot be written as text: beside context words its name is split "
                "into other tokens than before. Export kind='text_features' instead."
            )
    plain = clip_with_words(base, adapter_name, ids, layer.cbpt_context[adapter_name].detach().flatten(0, 1), config)
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    write_classes(folder, class_names=class_names, hypothesis_template=template)


def clip_with_words(
    base: Any, adapter_name: str, ids: list[int], vectors: torch.Tensor, config: CBPTConfig
) -> PreTrainedModel:
    """A CLIP of the same class and dtype in which the words `ids` have the embeddings `vectors` (len(ids), d).

    Its image tower is as the adapter repairs it, if it does.

    It pools at the recorded EOS token, also where `base` pools at the highest token of a prompt.
    """
    state = base_state(base) | repaired_weights(base, adapter_name)
    known = state[EMBEDDING]
    words = known.new_zeros(max(len(known), max(ids) + 1), known.shape[1])
    words[: len(known)] = known
    words[ids] = vectors.to(known)
    plain_config = copy.deepcopy(base.config)
    plain_config.text_config.vocab_size = len(words)
    plain_config.text_config.eos_token_id = config.eos_token_id
    plain = type(base)(plain_config)
    plain.load_state_dict(state | {EMBEDDING: words}, assign=True)
    return plain


def context_word(owner: str, index: int) -> str:
    """How context vector `index` of a class, or of all classes, is written."""
    return f"<|{owner}:{index}|>"


def prompt_template(num_context_tokens: int, position: str, owner: str = "{0}") -> str:
    """The prompts of Eq. 8 as a `hypothesis_template` of the pipeline, which fills in the class name everywhere.

    `owner` is whose the context is: every class's own, or that of all.
    """
    before = {"end": num_context_tokens, "middle": num_context_tokens // 2, "front": 0}[position]
    context = [context_word(owner, i) for i in range(num_context_tokens)]
    return "".join([*context[:before], "{0}", *context[before:], "."])


def write_classes(folder: Path, **content: Any) -> None:
    """Writes `classes.json`."""
    (folder / CLASSES_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_image_processor(model: Any) -> BaseImageProcessor:
    """Loads the image processor of the base model.

    Raises:
        ValueError: if there is none under the model's name.
    """
    try:
        return AutoImageProcessor.from_pretrained(model.name_or_path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Found no image processor at {model.name_or_path!r}: pass image_processor, the one of the base model."
        ) from error
