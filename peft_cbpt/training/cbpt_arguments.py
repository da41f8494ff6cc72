"""Settings of `CBPTTrainer`; the defaults but `dummy_triggers` are the paper's (Section 5.1) and, where it is
silent, CoOp's."""

import copy
import logging
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from transformers import TrainingArguments

from peft_cbpt.common.errors import InputError
from peft_cbpt.method.inversion import InversionSettings
from peft_cbpt.method.losses import ObjectiveWeights
from peft_cbpt.training.universal_settings import UniversalSettings
from peft_cbpt.training.without_effect import (
    PROMPTS_ONLY,
    RUNNER_UP_ONLY,
    UNIVERSAL_ONLY,
    WITHOUT_EFFECT,
    refuse_changed,
)

logger = logging.getLogger(__name__)
FEWEST_STEPS = 30
"""After the prompt warm-up: 60 images in batches of 32 make as many in the default's 20 epochs, and are purified."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class CBPTTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the settings of Eq. 9-16."""

    lambda_bn: float = field(default=1.0, metadata={"help": "lambda_1 of Eq. 16, weight of L_bn."})
    lambda_adv: float = field(default=0.4, metadata={"help": "lambda_2 of Eq. 16, weight of L_adv."})
    lambda_align: float = field(default=0.4, metadata={"help": "lambda_3 of Eq. 16, weight of L_align."})
    alpha: float = field(default=1.0, metadata={"help": "alpha of Eq. 15, weight of the perturbed images in L_bn."})
    warmup_epochs: int = field(default=5, metadata={"help": "First epochs, in which the prompts see L_bn only."})
    dummy_triggers: str = field(
        default="universal",
        metadata={
            "help": "universal: shared by images, towards classes that the model seems backdoored towards; or "
            "runner_up, as published (Eq. 9-11): every image's own, towards its runner-up class.",
            "choices": ["universal", "runner_up"],
        },
    )
    outer_solver: str | None = field(
        default=None,
        metadata={
            "help": "prompts: the outer steps of the paper, batch by batch on the context; or features: the same "
            "problem solved on text features, which the context then learns. By default features with universal "
            "dummy triggers, prompts with runner_up.",
            "choices": ["features", "prompts"],
        },
    )
    perturbed_share: float = field(
        default=UniversalSettings.perturbed_share,
        metadata={
            "help": "Part of the images that gets a dummy trigger towards a suspect, drawn anew in every epoch."
        },
    )
    universal_share: float = field(
        default=UniversalSettings.universal_share,
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
    inversion_batch_size: int = field(
        default=32,
        metadata={
            "help": "Images encoded or inverted at once, as far as memory has room; more on a GPU. Changes no result."
        },
    )
    inversion_dtype: str = field(
        default="fp32",
        metadata={"help": "In what the encoder computes while triggers are inverted.", "choices": list(DTYPES)},
    )
    compile_image_encoder: bool = field(
        default=False, metadata={"help": "torch.compile the image encoder; pays off for many images."}
    )
    use_feature_cache: bool = field(default=True, metadata={"help": "Keep features on disk for other runs."})
    feature_cache_dir: str | None = field(
        default=None, metadata={"help": "Where; by default PEFT_CBPT_CACHE, else ~/.cache/peft_cbpt."}
    )
    feature_cache_gb: float = field(
        default=20.0,
        metadata={"help": "Bound of feature_cache_dir in 10^9 bytes; what was used longest ago is removed first."},
    )
    activation_memory_gb: float = field(
        default=2.3,
        metadata={"help": "Bound of the activations of a pass in 10^9 bytes; what exceeds it is computed again."},
    )
    momentum: float = field(default=0.9, metadata={"help": "Momentum of SGD on the context."})

    # other words or defaults than those of `TrainingArguments`
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for adapter, results.json, card and checkpoints; trainer_output by default."},
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "true: go on from the last checkpoint in output_dir; or a checkpoint's folder."},
    )
    learning_rate: float = field(default=2e-3, metadata={"help": "Learning rate of SGD, cosine per epoch."})
    weight_decay: float = field(default=5e-4, metadata={"help": "Weight decay of SGD."})
    num_train_epochs: float = field(
        default=20,
        metadata={
            "help": "Epochs, prompt warm-up included. With outer_solver features the most there may be, each of 5 "
            "passes over the prompts."
        },
    )
    per_device_train_batch_size: int = field(
        default=32, metadata={"help": "Images per outer step and process; by default fewer where shots are few."}
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; 0 is none."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "`cosine` changes once per epoch, as CoOp's."})
    logging_strategy: str = field(default="no", metadata={"help": "Losses are logged per epoch in any case."})
    save_strategy: str = field(default="epoch", metadata={"help": "When checkpoints are written."})
    save_total_limit: int | None = field(default=1, metadata={"help": "How many checkpoints are kept."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Stays false."})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Batches are row numbers only."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "The context is always used."})
    ddp_broadcast_buffers: bool | None = field(default=False, metadata={"help": "No buffer changes."})
    label_names: list[str] | None = field(default_factory=lambda: ["labels"], metadata={"help": "Column of labels."})

    def __post_init__(self) -> None:
        for name in ("lambda_bn", "lambda_adv", "lambda_align", "alpha", "warmup_epochs", "weight_decay", "momentum"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be a number that is not negative, it is {getattr(self, name)}")
        for name in ("learning_rate", "num_train_epochs", "feature_cache_gb", "activation_memory_gb"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be positive, it is {getattr(self, name)}")
        for name in ("inversion_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, it is {getattr(self, name)}")
        if self.solves_features and self.dummy_triggers == "runner_up":
            raise InputError(
                "outer_solver features needs dummy_triggers universal: runner_up needs the prompts' own steps"
            )
        if self.max_steps <= 0:
            self.refuse_to_end_in_warmup(self.num_train_epochs, f"num_train_epochs {self.num_train_epochs:g}")
        if self.momentum >= 1:
            raise InputError(f"momentum must be below 1, it is {self.momentum}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be between 0 and 2**32 - 1, it is {self.seed}")
        for one in fields(self):
            choices = one.metadata.get("choices")
            if choices and isinstance(value := getattr(self, one.name), str) and value not in choices:
                raise InputError(f"{one.name} is {', '.join(choices)}, not {value!r}")
        self._refuse_what_has_no_effect()
        self.inversion_settings()
        self.universal_settings()
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # else processes without a GPU do not join
        super().__post_init__()
        self._n_gpu = min(self.n_gpu, 1)  # DataParallel would ask every replica for all class prompts

    @property
    def solves_features(self) -> bool:
        """Whether the outer problem is solved on text features."""
        return (self.outer_solver or ("features" if self.dummy_triggers == "universal" else "prompts")) == "features"

    def refuse_to_end_in_warmup(self, epochs: float, given: str) -> None:
        """See that some of the epochs come after the prompt warm-up.

        Another warm-up than the default's is taken as meant: nothing but warm-up is CoOp.

        Raises:
            InputError: if none does.
        """
        default = type(self).warmup_epochs
        if not self.solves_features and epochs <= self.warmup_epochs == default:
            raise InputError(
                f"{given} ends within the prompt warm-up, the first {default} epochs, in which nothing is purified: "
                "raise it, or set warmup_epochs (by default a quarter of the epochs)"
            )

    def with_enough_steps(self, n_images: int) -> "CBPTTrainingArguments":
        """The same with batches so small that `FEWEST_STEPS` steps follow the prompt warm-up.

        Other batches than the default's are taken as meant, and a number of steps that is given, too; then, and where
        batches of one image are not enough, a warning says how many epochs would be.
        """
        epochs = self.num_train_epochs - self.warmup_epochs
        if self.solves_features or self.max_steps > 0 or epochs <= 0:
            return self
        given, at_once = self.per_device_train_batch_size, self.world_size * self.gradient_accumulation_steps
        needed = math.ceil(FEWEST_STEPS / epochs)
        batch = given
        if math.ceil(n_images / (given * at_once)) < needed and given == type(self).per_device_train_batch_size:
            batch = max(1, min(given, n_images // (needed * at_once)))
        if batch < given:
            logger.warning(
                "%d images in batches of %d would be %d steps after the prompt warm-up, too few to purify: batches "
                "are of %d",
                n_images,
                given,
                math.ceil(n_images / (given * at_once)) * epochs,
                batch,
            )
        if (steps := math.ceil(n_images / (batch * at_once))) < needed:
            logger.warning(
                "only %d steps follow the prompt warm-up, too few to purify: set num_train_epochs to %d or more",
                steps * epochs,
                self.warmup_epochs + math.ceil(FEWEST_STEPS / steps),
            )
        if batch == given:
            return self
        changed = copy.copy(self)
        changed.per_device_train_batch_size = batch
        return changed

    def inversion_settings(self) -> InversionSettings:
        """The inner loop's settings."""
        return InversionSettings(
            self.norm,
            self.epsilon,
            self.inversion_steps,
            self.inversion_lr,
            self.inversion_step_rule,  # type: ignore[arg-type]
        )

    def universal_settings(self) -> UniversalSettings:
        """What `dummy_triggers="universal"` does."""
        return UniversalSettings(self.perturbed_share, self.universal_share)

    def inner_loop(self) -> dict[str, Any]:
        """The settings of the inner loop that is used, JSON-serialisable."""
        if self.dummy_triggers == "universal":
            return {"dummy_triggers": "universal", **asdict(self.universal_settings())}
        inversion = {name: str(value) for name, value in asdict(self.inversion_settings()).items()}
        return {
            "dummy_triggers": "runner_up",
            "positives": self.positives,
            "dtype": self.inversion_dtype,
            "inversion": inversion,
        }

    def used(self) -> dict[str, Any]:
        """All settings but those that have no effect."""
        of_the_other = RUNNER_UP_ONLY if self.dummy_triggers == "universal" else UNIVERSAL_ONLY
        of_the_loop = PROMPTS_ONLY if self.solves_features else ()
        unused = {name for names in (of_the_other, of_the_loop, *WITHOUT_EFFECT.values()) for name in names}
        solver = {"outer_solver": "features" if self.solves_features else "prompts"}
        return {name: value for name, value in (self.to_dict() | solver).items() if name not in unused}

    def objective_weights(self) -> ObjectiveWeights:
        """The outer objective's weights."""
        return ObjectiveWeights(self.lambda_bn, self.lambda_adv, self.lambda_align, self.alpha)

    def _refuse_what_has_no_effect(self) -> None:
        if self.dummy_triggers == "universal":
            refuse_changed(self, RUNNER_UP_ONLY, "it belongs to dummy_triggers runner_up")
        else:
            refuse_changed(self, UNIVERSAL_ONLY, "it belongs to dummy_triggers universal")
        if self.solves_features:
            refuse_changed(self, PROMPTS_ONLY, "it belongs to outer_solver prompts")
        if not self.use_feature_cache:
            refuse_changed(self, ("feature_cache_dir", "feature_cache_gb"), "use_feature_cache is false")
        if not self.dataloader_num_workers:
            refuse_changed(self, ("dataloader_persistent_workers",), "dataloader_num_workers is 0")
        if self.lr_scheduler_type == "cosine":
            refuse_changed(self, ("lr_scheduler_kwargs",), "it belongs to other values of lr_scheduler_type")
        if self.use_cpu or not torch.accelerator.is_available():
            refuse_changed(self, ("fp16",), "a CPU has no half precision that is quicker; bf16 it has")
        for reason, names in WITHOUT_EFFECT.items():
            refuse_changed(self, names, reason)
