"""Settings of `EncoderPurifier`."""

import math
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from peft_cbpt.common.errors import InputError
from peft_cbpt.training.trigger_pool import FAMILIES
from peft_cbpt.training.without_effect import refuse_changed

WITHOUT_EFFECT = {
    "the losses are those of docs/encoder.md": ("label_smoothing_factor", "average_tokens_across_devices"),
    "a step reads images and no text": ("neftune_noise_alpha", "train_sampling_strategy", "length_column_name"),
    "the tower is called in parts": ("torch_compile", "torch_compile_backend", "torch_compile_mode")
    + ("fsdp", "fsdp_config", "deepspeed", "parallelism_config", "use_liger_kernel", "liger_kernel_config"),
    "nothing is evaluated": ("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "eval_on_start"),
    "the trainer's rows are its own": ("remove_unused_columns",),
}
"""By reason, the settings of `TrainingArguments` that would change nothing here, or cannot work."""


@dataclass
class EncoderPurifierArguments(TrainingArguments):
    """`transformers.TrainingArguments` with what the purification of an image encoder needs besides."""

    lora_rank: int = field(default=8, metadata={"help": "Rank of the update of every layer of the image tower."})
    kinds: list[str] = field(
        default_factory=lambda: list(FAMILIES),
        metadata={"help": "Kinds of universal triggers to look for.", "choices": list(FAMILIES)},
    )
    hold_weight: float = field(default=5.0, metadata={"help": "Weight of clean and changed images' features."})
    update_weight: float = field(default=20.0, metadata={"help": "Weight of what the update adds in every layer."})
    pull_weight: float = field(
        default=15.0,
        metadata={"help": "Weight of images under triggers, by these triggers' worth and the agreement of all."},
    )
    search_images: int = field(default=16, metadata={"help": "Images that a trigger is looked for on."})
    search_steps: int = field(default=10, metadata={"help": "Steps of ascent of a new trigger."})
    search_every: int = field(default=5, metadata={"help": "Steps of training between two new triggers."})
    pool_size: int = field(default=24, metadata={"help": "Triggers that are kept and trained against."})

    # other defaults than those of `TrainingArguments`
    max_steps: int = field(default=150, metadata={"help": "Steps of training, however many images there are."})
    learning_rate: float = field(default=1.5e-3, metadata={"help": "Learning rate of AdamW, cosine."})
    warmup_steps: float = field(default=10, metadata={"help": "First steps, in which the learning rate rises."})
    weight_decay: float = field(default=0.0, metadata={"help": "Weight decay of AdamW."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Images per step and process."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; 0 is none."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "As in `Trainer`."})
    logging_strategy: str = field(default="no", metadata={"help": "Losses are logged per epoch in any case."})
    save_strategy: str = field(default="steps", metadata={"help": "When checkpoints are written."})
    save_steps: float = field(default=25, metadata={"help": "Steps between checkpoints."})
    save_total_limit: int | None = field(default=1, metadata={"help": "How many checkpoints are kept."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay false."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "All of the update is used."})
    ddp_broadcast_buffers: bool | None = field(default=False, metadata={"help": "No buffer changes."})
    label_names: list[str] | None = field(default_factory=list, metadata={"help": "There are no labels."})

    def __post_init__(self) -> None:
        at_least_one = ("lora_rank", "search_steps", "search_every", "pool_size", "per_device_train_batch_size")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, it is {getattr(self, name)}")
        if self.search_images < 2:
            raise InputError(f"search_images must be at least 2, it is {self.search_images}")
        for name in ("hold_weight", "update_weight", "pull_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be a number that is not negative, it is {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate must be positive, it is {self.learning_rate}")
        if unknown := [kind for kind in self.kinds if kind not in FAMILIES] or ([] if self.kinds else ["none"]):
            raise InputError(f"kinds are of {', '.join(FAMILIES)}, not {unknown[0]!r}")
        for reason, names in WITHOUT_EFFECT.items():
            refuse_changed(self, names, reason)
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # else processes without a GPU do not join
        super().__post_init__()
        self._n_gpu = min(self.n_gpu, 1)  # DataParallel would copy the triggers' tower at every step
