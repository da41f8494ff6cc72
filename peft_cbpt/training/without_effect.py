"""Settings that would change nothing in the mode that is chosen; they are refused."""

from dataclasses import fields
from typing import Any

from peft_cbpt.common.errors import InputError

RUNNER_UP_ONLY = (
    "positives",
    "norm",
    "epsilon",
    "inversion_steps",
    "inversion_lr",
    "inversion_step_rule",
    "inversion_dtype",
)
UNIVERSAL_ONLY = ("perturbed_share", "universal_share")
PROMPTS_ONLY = (
    "warmup_epochs",
    "learning_rate",
    "momentum",
    "weight_decay",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
)
WITHOUT_EFFECT = {
    "the context is learned by SGD": ("optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2")
    + ("adam_epsilon",),
    "the learning rate is constant within an epoch and has no warm-up; warmup_epochs is that of the prompts": (
        "warmup_steps",
    ),
    "the losses are those of Eq. 13 to 15": ("label_smoothing_factor", "average_tokens_across_devices"),
    "an outer step reads features and no text": (
        "neftune_noise_alpha",
        "train_sampling_strategy",
        "length_column_name",
    ),
    "nothing but the context learns, and activation_memory_gb bounds what is kept": (
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        "auto_find_batch_size",
        "torch_empty_cache_steps",
    ),
    "use compile_image_encoder": ("torch_compile", "torch_compile_backend", "torch_compile_mode"),
    "the model is small enough to lie whole in every process": ("fsdp", "fsdp_config", "deepspeed")
    + ("parallelism_config",),
    "it is for language models": ("use_liger_kernel", "liger_kernel_config", "use_cache"),
    "every image counts": ("dataloader_drop_last",),
    "the context stays in float32": ("fp16_full_eval", "bf16_full_eval"),
    "compare checkpoints with evaluate": ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    "the trainer's rows are its own": ("remove_unused_columns",),
}
"""By reason, the settings of `TrainingArguments` that would change nothing here, or cannot work."""


def refuse_changed(arguments: Any, names: tuple[str, ...], reason: str) -> None:
    """See that settings have their defaults.

    Raises:
        InputError: if one has not.
    """
    for one in fields(arguments):
        default = one.default_factory() if callable(one.default_factory) else one.default
        if one.name in names and getattr(arguments, one.name) != default:
            raise InputError(f"{one.name} has no effect here: {reason}; leave it out")
