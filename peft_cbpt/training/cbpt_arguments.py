"""Settings of `CBPTTrainer`; the defaults but `target` are the paper's (Section 5.1) and, where it is
silent, CoOp's."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from peft_cbpt.common.errors import InputError
from peft_cbpt.detection.suspects import EVIDENCE
from peft_cbpt.method.inversion import InversionSettings
from peft_cbpt.method.losses import ObjectiveWeights
from peft_cbpt.training.dummy_triggers import DummyTriggerSettings

_NOT_NEGATIVE = ("lambda_bn", "lambda_adv", "lambda_align", "alpha", "warmup_epochs", "weight_decay", "momentum")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_AT_LEAST_ONE = (
    "inversion_batch_size",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "text_chunk_size",
)


@dataclass
class CBPTTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the settings of Eq. 9-16."""

    lambda_bn: float = field(default=1.0, metadata={"help": "lambda_1 of Eq. 16, weight of L_bn."})
    lambda_adv: float = field(default=0.4, metadata={"help": "lambda_2 of Eq. 16, weight of L_adv."})
    lambda_align: float = field(default=0.4, metadata={"help": "lambda_3 of Eq. 16, weight of L_align."})
    alpha: float = field(default=1.0, metadata={"help": "alpha of Eq. 15, weight of the perturbed images in L_bn."})
    warmup_epochs: int = field(default=5, metadata={"help": "First epochs, in which the prompts see L_bn only."})
    target: str = field(
        default="suspected",
        metadata={
            "help": "What dummy triggers aim at: suspected, the class that the model seems backdoored towards; or "
            "runner_up, as published (Eq. 9-11), with the settings of the inner loop below.",
            "choices": ["suspected", "runner_up"],
        },
    )
    evidence: list[str] = field(
        default_factory=lambda: list(EVIDENCE),
        metadata={"help": "By what classes are suspected; see docs/method.md.", "choices": list(EVIDENCE)},
    )
    perturbed_share: float = field(
        default=DummyTriggerSettings.perturbed_share,
        metadata={
            "help": "Part of the images that gets a dummy trigger towards a suspect, drawn anew in every epoch."
        },
    )
    universal_share: float = field(
        default=DummyTriggerSettings.universal_share,
        metadata={"help": "Part of these whose trigger is universal; that of the others is embedded."},
    )
    positives: str = field(
        default="farthest",
        metadata={"help": "Which image of class y' is v_pos.", "choices": ["farthest", "closest", "random"]},
    )
    norm: float = field(default=2, metadata={"help": "p of the budget of Eq. 16: 0, 1, 2 or inf."})
    epsilon: float = field(
        default=6 / 255, metadata={"help": "rho of Eq. 16 in [0, 1]-pixel units; for norm 0 a number of pixels."}
    )
    inversion_steps: int = field(default=10, metadata={"help": "Steps of the inner loop."})
    inversion_lr: float = field(default=0.1, metadata={"help": "Step size of the inner loop."})
    inversion_step_rule: str = field(
        default="raw",
        metadata={"help": "How the gradient makes a step.", "choices": ["raw", "normalized", "sign"]},
    )
    inversion_batch_size: int | None = field(
        default=None,
        metadata={"help": "Images inverted at once; changes no result. By default as many as memory has room for."},
    )
    inversion_dtype: str = field(
        default="fp32",
        metadata={"help": "In what the encoder computes while triggers are inverted.", "choices": list(DTYPES)},
    )
    compile_image_encoder: bool = field(
        default=False, metadata={"help": "torch.compile the image encoder; pays off for many images."}
    )
    use_cache: bool = field(
        default=True, metadata={"help": "Keep clean features, and perturbed features by (image, y'), also on disk."}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Where; by default PEFT_CBPT_CACHE, else ~/.cache/peft_cbpt."}
    )
    cache_size_gb: float = field(
        default=20.0,
        metadata={"help": "Bound of cache_dir in 10^9 bytes; what was used longest ago is removed first."},
    )
    text_chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Prompts encoded at once, recomputed in the backward pass. By default all at once, or, where "
            "memory has no room for that, as few recomputed as needed."
        },
    )
    momentum: float = field(default=0.9, metadata={"help": "Momentum of SGD on the context."})

    # other defaults than those of `TrainingArguments`
    learning_rate: float = field(default=2e-3, metadata={"help": "Learning rate of SGD, cosine per epoch."})
    weight_decay: float = field(default=5e-4, metadata={"help": "Weight decay of SGD."})
    num_train_epochs: float = field(default=20, metadata={"help": "Epochs, prompt warm-up included."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Images per outer step and process."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; 0 is none."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "`cosine` changes once per epoch, as CoOp's."})
    logging_strategy: str = field(default="no", metadata={"help": "Losses are logged per epoch in any case."})
    save_strategy: str = field(default="epoch", metadata={"help": "When checkpoints are written."})
    save_total_limit: int | None = field(default=1, metadata={"help": "How many checkpoints are kept."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay false."})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Batches are row numbers only."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "The context is always used."})
    ddp_broadcast_buffers: bool | None = field(default=False, metadata={"help": "No buffer changes."})
    label_names: list[str] | None = field(default_factory=lambda: ["labels"], metadata={"help": "Column of labels."})

    def __post_init__(self) -> None:
        for name in _NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be a number that is not negative, it is {getattr(self, name)}")
        for name in ("learning_rate", "num_train_epochs", "cache_size_gb"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be positive, it is {getattr(self, name)}")
        for name in _AT_LEAST_ONE:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, it is {getattr(self, name)}")
        if self.momentum >= 1:
            raise InputError(f"momentum must be below 1, it is {self.momentum}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be between 0 and 2**32 - 1, it is {self.seed}")
        if self.target not in ("suspected", "runner_up"):
            raise InputError(f"target is suspected or runner_up, not {self.target!r}")
        if self.positives not in ("farthest", "closest", "random"):
            raise InputError(f"positives is farthest, closest or random, not {self.positives!r}")
        if self.inversion_dtype not in DTYPES:
            raise InputError(f"inversion_dtype is {', '.join(DTYPES)}, not {self.inversion_dtype!r}")
        if self.remove_unused_columns:
            raise InputError("remove_unused_columns must stay false: the trainer's rows are its own")
        if self.load_best_model_at_end:
            raise InputError("load_best_model_at_end is not supported: compare the checkpoints with evaluate")
        self.inversion_settings()
        self.dummy_trigger_settings()
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # else processes without a GPU do not join
        super().__post_init__()
        self._n_gpu = min(self.n_gpu, 1)  # DataParallel would ask every replica for all class prompts

    def inversion_settings(self) -> InversionSettings:
        """The inner loop's settings."""
        return InversionSettings(
            self.norm,
            self.epsilon,
            self.inversion_steps,
            self.inversion_lr,
            self.inversion_step_rule,  # type: ignore[arg-type]
        )

    def dummy_trigger_settings(self) -> DummyTriggerSettings:
        """What `target="suspected"` does."""
        evidence: Any = tuple(self.evidence)
        return DummyTriggerSettings(evidence, self.perturbed_share, self.universal_share)

    def objective_weights(self) -> ObjectiveWeights:
        """The outer objective's weights."""
        return ObjectiveWeights(self.lambda_bn, self.lambda_adv, self.lambda_align, self.alpha)
