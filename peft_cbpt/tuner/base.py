"""What the base model and its tokenizer have to be."""

from operator import attrgetter
from typing import Any

from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from peft_cbpt.tuner.config import CBPTConfig
from peft_cbpt.tuner.families import family_of, num_places

NEEDED = (
    "text_model.embeddings.token_embedding",
    "text_model.embeddings.position_embedding",
    "vision_model",
    "get_text_features",
)
LEGACY_EOS_TOKEN_ID = 2
"""With this `eos_token_id` in its config CLIP pools at the highest id of a prompt, wherever its EOS is."""


def check_base(model: nn.Module) -> None:
    """Raises a ValueError unless `model` is a CLIP with both towers, whose prompts end where its text tower pools."""
    needed = NEEDED if family_of(model).fills_prompts else (*NEEDED, "text_model.eos_token_id")
    missing = [path for path in needed if not _has(model, path)]
    if missing:
        raise ValueError(
            "CBPT needs a CLIP with both towers, such as transformers' CLIPModel or SiglipModel; "
            f"{type(model).__name__} has no {', '.join(missing)}."
        )


def load_tokenizer(config: CBPTConfig, model: nn.Module) -> PreTrainedTokenizerBase:
    """Loads the tokenizer that the config names, else the base model's.

    Raises:
        ValueError: if neither has a name, or there is no tokenizer under it.
    """
    own_name = config.tokenizer_name_or_path
    name = own_name or getattr(model, "name_or_path", None)
    advice = "Pass tokenizer_name_or_path, or hand over a tokenizer: CBPTConfig(...).tokenize(tokenizer)."
    if not name:
        raise ValueError(f"The base model has no name_or_path to load a tokenizer from. {advice}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=None if own_name else config.revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"Found no tokenizer at {name!r}. {advice}") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes up an empty one for a known model
        raise ValueError(f"Found no tokenizer at {name!r}. {advice}")
    return tokenizer


def check_prompts(config: CBPTConfig, model: Any) -> None:
    """Raises a ValueError unless the prompts of a tokenized `config` go with the text tower of `model`."""
    recorded = config.recorded_ids
    assert recorded is not None and config.class_names is not None
    text_model = model.text_model
    num_words = text_model.embeddings.token_embedding.weight.shape[0]
    num_positions, eos, family = num_places(model), recorded.eos_token_id, family_of(model)
    pools_at = None if family.fills_prompts else text_model.eos_token_id
    pools_highest = family.may_pool_highest and pools_at == LEGACY_EOS_TOKEN_ID != eos
    for kind, rows in (("learned", config.learned_prompts()), ("template", recorded.template_token_ids)):
        for name, row in zip(config.class_names, rows, strict=True):
            if len(row) > num_positions:
                raise ValueError(
                    f"The {kind} prompt of class {name!r} has {len(row)} tokens, but the text tower has "
                    f"{num_positions} positions: shorten the name or lower num_context_tokens."
                )
            if max(row) >= num_words:
                raise ValueError(
                    f"The {kind} prompt of class {name!r} has token {max(row)}, but the base model knows "
                    f"{num_words} tokens; this is not the tokenizer of the base model."
                )
            if pools_highest and max(row) != eos:
                raise ValueError(
                    f"The text tower pools at the highest token of a prompt (its eos_token_id is "
                    f"{LEGACY_EOS_TOKEN_ID}), but in the {kind} prompt of class {name!r} that is {max(row)} "
                    f"and not the tokenizer's EOS {eos}."
                )
    if pools_at not in (None, eos) and not pools_highest:
        raise ValueError(
            f"The tokenizer ends prompts with token {eos}, but the text tower pools at its eos_token_id "
            f"{pools_at}; this is not the tokenizer of the base model."
        )


def _has(model: nn.Module, path: str) -> bool:
    try:
        attrgetter(path)(model)
    except AttributeError:
        return False
    return True
