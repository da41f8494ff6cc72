"""Settings of `peft_cbpt.purify` beside those of the tuning."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainingArguments

from peft_cbpt.clip.templates import PLAIN_TEMPLATE
from peft_cbpt.common.errors import InputError
from peft_cbpt.data.shots import ShotArguments
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.encoder_arguments import EncoderPurifierArguments
from peft_cbpt.training.without_effect import refuse_changed
from peft_cbpt.tuner.config import CONTEXT_INITS, CBPTConfig

ENCODER, PROMPTS = "encoder", "prompts"
OF_PROMPTS = ("num_context_tokens", "context_init", "unified_context", "class_token_position")
OF_ENCODER = {
    "encoder_rank": "lora_rank",
    "encoder_steps": "max_steps",
    "encoder_learning_rate": "learning_rate",
    "encoder_batch_size": "per_device_train_batch_size",
    "encoder_kinds": "kinds",
}
"""By option of `purify`, the field of `EncoderPurifierArguments`, whose default holds where none is given."""
SHARED = ("seed", "use_cpu", "bf16", "fp16", "disable_tqdm", "report_to", "dataloader_num_workers", "save_strategy")
"""Of both trainers."""
OF_TUNING = (
    *("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "weight_decay", "lr_scheduler_type", "max_grad_norm"),
    *("save_steps", "save_total_limit"),
)
"""Settings of `TrainingArguments` that the encoder's training does not take over."""
NOT_EVALUATED = (
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "do_train", "do_eval", "do_predict"),
    *("prediction_loss_only", "include_for_metrics", "batch_eval_metrics", "per_device_eval_batch_size"),
)
NOT_OF_METHOD = ("use_feature_cache", "feature_cache_dir", "feature_cache_gb", "activation_memory_gb")


@dataclass(kw_only=True)
class PurifyArguments(ShotArguments):
    """Which images and classes, and what is made: a repaired encoder with prompts on it, or one of the two."""

    only: str | None = field(
        default=None,
        metadata={
            "help": "prompts: the paper's, on the encoder as it is; encoder: a LoRA, no prompts. Both by default.",
            "choices": [ENCODER, PROMPTS],
        },
    )
    encoder_rank: int | None = field(
        default=None, metadata={"help": "Rank of the encoder's update; else that of EncoderPurifierArguments."}
    )
    encoder_steps: int | None = field(default=None, metadata={"help": "Steps of the encoder's training; likewise."})
    encoder_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the encoder's training; likewise."}
    )
    encoder_batch_size: int | None = field(
        default=None, metadata={"help": "Images per step and process of the encoder's training; likewise."}
    )
    encoder_kinds: list[str] | None = field(
        default=None,
        metadata={"help": "Kinds of universal triggers that the encoder learns to withstand; likewise."},
    )
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

    def made(self, training: CBPTTrainingArguments, encoder: EncoderPurifierArguments | None = None) -> str | None:
        """What is made: `only` of the two, or both (None); the published dummy triggers are for prompts alone.

        Raises:
            InputError: if settings contradict each other, or have no effect.
        """
        only = self.only
        for name in ("encoder_rank", "encoder_steps", "encoder_learning_rate", "encoder_batch_size"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise InputError(f"{name} must be positive, it is {value}")
        refuse_changed(training, NOT_EVALUATED, "purify measures before and after training, and not in between")
        if training.dummy_triggers == "runner_up":
            if only == ENCODER:
                raise InputError(
                    "dummy_triggers runner_up is the paper's way to tune prompts, and only encoder makes none: leave "
                    "one of them out"
                )
            only = PROMPTS
        given = [name for name in OF_ENCODER if getattr(self, name) is not None] + ["encoder"] * (encoder is not None)
        if only == PROMPTS and given:
            raise InputError(f"{given[0]} has no effect here: only prompts are made; leave it out")
        if only == ENCODER:
            of_trainer = {one.name for one in fields(TrainingArguments)}
            own = tuple(
                one.name
                for one in fields(training)
                if one.name not in {*of_trainer, *NOT_OF_METHOD} or one.name in OF_TUNING
            )
            refuse_changed(training, own, "only the encoder is purified, whose settings begin with encoder_")
            refuse_changed(self, OF_PROMPTS, "only encoder makes no prompts")
        return only

    def encoder_arguments(
        self, training: CBPTTrainingArguments, folder: Path, given: EncoderPurifierArguments | None = None
    ) -> EncoderPurifierArguments:
        """Settings of the encoder's training, with seed, device and the like of the tuning of prompts."""
        shared: dict[str, Any] = {name: getattr(training, name) for name in SHARED}
        if shared["save_strategy"] != "no":
            del shared["save_strategy"]
        chosen = {OF_ENCODER[name]: getattr(self, name) for name in OF_ENCODER if getattr(self, name) is not None}
        if given is not None:
            if chosen:
                raise InputError("settings of the encoder are given twice: leave out those that begin with encoder_")
            names = {one.name for one in fields(EncoderPurifierArguments) if one.init} - {"output_dir", *shared}
            chosen = {name: getattr(given, name) for name in names}
        return EncoderPurifierArguments(output_dir=str(folder), **shared, **chosen)

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
