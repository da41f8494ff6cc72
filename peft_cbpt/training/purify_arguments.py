"""Settings of `peft_cbpt.purify` beside those of the tuning."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from peft_cbpt.clip.templates import PLAIN_TEMPLATE
from peft_cbpt.data.shots import ShotArguments
from peft_cbpt.tuner.config import CONTEXT_INITS, CBPTConfig


@dataclass(kw_only=True)
class PurifyArguments(ShotArguments):
    """Which images and classes, and what prompts."""

    num_context_tokens: int | None = field(
        default=None, metadata={"help": "M of Eq. 8; by default as many as the template has words, or 4 with noise."}
    )
    context_init: str | None = field(
        default=None,
        metadata={
            "help": "What the context starts from: normal (noise, as in the paper) or template (its words). By "
            "default template where its words can be the context and outer_solver is features.",
            "choices": list(CONTEXT_INITS),
        },
    )
    unified_context: bool = field(default=False, metadata={"help": "One context for all classes, not one for each."})
    class_token_position: str = field(default="end", metadata={"help": "end, middle or front."})
    template: str = field(default=PLAIN_TEMPLATE, metadata={"help": "Prompt of the undefended classifier."})
    base_model_id: str | None = field(
        default=None, metadata={"help": "Hub id of the model, where its name is that of a folder."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start anew where the output folder holds checkpoints of another run."}
    )

    def prompts(
        self, class_names: Sequence[str], tokenizer: PreTrainedTokenizerBase, solves_features: bool
    ) -> CBPTConfig:
        """The class-wise prompts, tokenized.

        Args:
            class_names: In label order.
            tokenizer: The model's.
            solves_features: Whether the context will have to express text features near the template's.

        Raises:
            ValueError: if there are no such prompts.
        """
        names = ("unified_context", "template", "class_token_position")
        given: dict[str, Any] = {"class_names": list(class_names), **{one: getattr(self, one) for one in names}}
        free = self.context_init is None and self.num_context_tokens is None
        if self.context_init == "template" or (free and solves_features and self.class_token_position == "end"):
            words = context_words(tokenizer, self.template)
            if self.context_init == "template" or words:
                count = self.num_context_tokens or words
                return CBPTConfig(**given, context_init="template", num_context_tokens=count).tokenize(tokenizer)
        count = CBPTConfig.num_context_tokens if self.num_context_tokens is None else self.num_context_tokens
        return CBPTConfig(**given, num_context_tokens=count).tokenize(tokenizer)


def context_words(tokenizer: PreTrainedTokenizerBase, template: str) -> int:
    """How many tokens a template has before the name, if name and a period end it; otherwise 0."""
    before, _, after = template.partition("{}")
    return len(tokenizer(before.strip(), add_special_tokens=False)["input_ids"]) if after == "." else 0
