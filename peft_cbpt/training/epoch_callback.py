"""What `CBPTTrainer` does at the beginning and the end of an epoch."""

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from peft_cbpt.common.errors import InputError
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments


class EpochCallback(TrainerCallback):
    """Logs the means of an epoch of a `CBPTTrainer`, and ends a fit that is done."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.learning_rate = 0.0

    def on_epoch_begin(
        self, args: CBPTTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.start_epoch()
        self.learning_rate = self.trainer.optimizer.param_groups[0]["lr"]

    def on_epoch_end(
        self, args: CBPTTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = self.trainer
        means = trainer.end_epoch()
        if not means:
            return
        if not all(map(math.isfinite, means.values())):
            raise InputError(
                f"the losses of epoch {math.ceil(state.epoch or 0)} are not finite: lower learning_rate or the "
                "weights of the losses; checkpoints of earlier epochs are whole"
            )
        trainer.log(means | {"learning_rate": self.learning_rate})
        state.log_history[-1]["pseudo_targets"] = trainer.pseudo_targets()  # type: ignore[assignment]
        if trainer.context_fit is not None and trainer.context_fit.is_done(state.log_history):
            control.should_training_stop = True
