"""Purification as a bi-level `Trainer`: trigger inversion inside, class-wise prompt tuning outside (Eq. 16)."""

import math
import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

from peft_cbpt.clip.pixels import PixelNormalizer
from peft_cbpt.common.processes import any_process
from peft_cbpt.method.losses import l_bn, purification_objective
from peft_cbpt.method.targets import runner_up, surest_first
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.checkpoints import check_checkpoint, job_hash, write_job
from peft_cbpt.training.class_shares import SharedClassEncoder
from peft_cbpt.training.dummy_triggers import DummyTriggers
from peft_cbpt.training.epoch_log import EpochLog
from peft_cbpt.training.inverter import ImagesToInvert, cache_keys, make_dummy_triggers, make_inverter, open_cache
from peft_cbpt.training.optimization import context_optimizer, cosine_over_epochs
from peft_cbpt.training.samples import BankRows, checked_samples, collate
from peft_cbpt.training.trigger_inverter import TriggerInverter, pairs_of

STAGING_FOLDER = ".incomplete"


class CBPTTrainer(Trainer):
    """Tunes the class-wise context of a CBPT adapter so that inverted triggers no longer win.

    The image encoder is frozen and images are not augmented, so clean images are encoded once. With the
    default `target="suspected"`, triggers towards the class that the model seems backdoored towards are found
    once, before the first epoch (see `training.dummy_triggers`); with `target="runner_up"`, as published,
    the inner loop runs once for every pair of an image and its y' (see `training.trigger_inverter`).
    Features are kept on disk for others. An outer step is then a pass of the text tower only. Nothing but
    `cbpt_context` is given a gradient. Several processes share the classes and the images.

    Args:
        model: A CLIP with a CBPT adapter, from `get_peft_model(clip, CBPTConfig(...))`.
        args: The settings.
        train_dataset: Map-style dataset of the clean labelled images D_clean: rows with `pixel_values` ((3, H, W),
            uint8, or float in [0, 1]), `labels` (index into the adapter's `class_names`) and `sample_id`.
        normalize: How [0, 1] pixels become the base model's input; CLIP's own mean and standard deviation if not
            given.
        **kwargs: As for `transformers.Trainer`.

    Every epoch logs the mean of each loss, `inversion_success` (share of perturbed images that are classified as y'),
    `clean_accuracy` on the training images, with `runner_up` also `cache_hit_rate` and `inversions` (how many were
    computed), and keeps in `state.log_history` how often each class was y'.
    """

    args: CBPTTrainingArguments

    def __init__(
        self,
        model: PeftModel,
        args: CBPTTrainingArguments,
        train_dataset: Dataset,
        normalize: PixelNormalizer | None = None,
        **kwargs: Any,
    ):
        self.images = train_dataset
        self.normalize = normalize or PixelNormalizer()
        self.inverter: TriggerInverter | None = None
        self.dummy_triggers: DummyTriggers | None = None
        self.epoch_log = EpochLog()
        kwargs.setdefault("data_collator", collate)
        super().__init__(model, args, train_dataset=BankRows(len(train_dataset)), **kwargs)  # type: ignore[arg-type]
        self.model_accepts_loss_kwargs = False
        self._unvisited = torch.ones(len(train_dataset), dtype=torch.bool, device=args.device)  # type: ignore[arg-type]
        self._cache = open_cache(args)
        samples = checked_samples(train_dataset, model.class_names)
        self._to_invert = ImagesToInvert(train_dataset, samples, self.normalize)
        self._encode_classes = SharedClassEncoder(model, args.process_index, args.device, args.text_chunk_size)
        self.add_callback(_EpochCallback(self))

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Encode the clean images once, then train as `Trainer.train` does."""
        self.model.to(self.args.device)  # type: ignore[arg-type]
        self.model.eval()
        base = self.model.get_base_model()
        self.inverter = make_inverter(base, self._to_invert, self.args, self._cache, *self._keys)
        if self.args.target == "suspected":
            self.dummy_triggers = make_dummy_triggers(
                self.inverter, self.model, self._to_invert, self.args, self._cache, self._keys[0]
            )
        return super().train(*args, **kwargs)

    @cached_property
    def _keys(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What clean and perturbed features depend on; the weights are frozen, so that they are hashed once."""
        return cache_keys(self.model.get_base_model(), self._to_invert, self.args)

    @cached_property
    def _job(self) -> str:
        prompts: Any = self.model.active_peft_config
        dummies = self.args.dummy_trigger_settings() if self.args.target == "suspected" else None
        return job_hash(self._keys[1], dummies, prompts, self.args.seed)

    def check_checkpoint(self, folder: str) -> None:
        """See that a checkpoint is whole and of this job.

        Raises:
            InputError: if it is not.
        """
        (learned,) = [tuple(parameter.shape) for parameter in self.model.parameters() if parameter.requires_grad]
        adapter_name: Any = self.model.active_adapter
        check_checkpoint(Path(folder), self._job, adapter_name, learned)

    def _clean_logits(self, rows: Tensor | slice, class_features: Tensor) -> Tensor:
        assert self.inverter is not None
        scale = self.model.get_base_model().logit_scale.detach().float().exp()
        return scale * self.inverter.bank.features[rows] @ class_features.T

    @property
    def _epoch(self) -> int:
        return math.floor((self.state.epoch or 0) + 1e-6)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        """The outer objective of Eq. 16 on a batch of bank rows; L_bn of the clean images during prompt warm-up."""
        assert self.inverter is not None
        rows = inputs["rows"]
        labels = self.inverter.bank.labels[rows]
        with self.accelerator.autocast():
            class_features = self._encode_classes(model)
        logits = self._clean_logits(rows, class_features)
        clean_accuracy = (logits.argmax(1) == labels).float().mean()
        if self._epoch < self.args.warmup_epochs:
            loss = l_bn(logits, None, labels, self.args.alpha)
            self.epoch_log.add(len(rows), loss_bn=loss.detach(), clean_accuracy=clean_accuracy)
            loss = self.args.lambda_bn * loss
            return (loss, {"logits": logits}) if return_outputs else loss

        if self.dummy_triggers is not None:
            perturbed, pseudo_targets = self.dummy_triggers.perturbed_features(rows, logits.detach(), self._epoch)
        else:
            pseudo_targets = runner_up(logits.detach(), labels)
            if self.args.use_cache:
                self._gather_inversions(rows, pseudo_targets, class_features.detach())
            perturbed = self.inverter.perturbed_features(rows, pseudo_targets)
        scale = self.model.get_base_model().logit_scale.detach().float().exp()
        perturbed_logits = scale * perturbed @ class_features.T
        weights = self.args.objective_weights()
        loss, parts = purification_objective(logits, perturbed_logits, labels, pseudo_targets, weights)
        self.epoch_log.add(len(rows), **parts, clean_accuracy=clean_accuracy)
        changed = (perturbed != self.inverter.bank.features[rows]).any(1).nonzero()[:, 0]
        if len(changed):
            reached = (perturbed_logits.argmax(1) == pseudo_targets)[changed].float().mean()
            self.epoch_log.add(len(changed), inversion_success=reached)
            self.epoch_log.looked_up += zip(rows[changed].tolist(), pseudo_targets[changed].tolist(), strict=True)
        return (loss, {"logits": logits}) if return_outputs else loss

    @torch.no_grad()
    def _gather_inversions(self, rows: Tensor, pseudo_targets: Tensor, class_features: Tensor) -> None:
        """When a pair of this step is missing in any process, invert it, in full batches: with pairs that later steps
        of the epoch would miss if the prompts stood still, the surest first.
        """
        assert self.inverter is not None
        self._unvisited[self.accelerator.gather(rows)] = False
        if any_process(self.inverter.missing(rows, pseudo_targets)):
            ahead = self._unvisited.nonzero()[:, 0]
            logits, labels = self._clean_logits(ahead, class_features), self.inverter.bank.labels[ahead]
            order = surest_first(logits, labels)
            later = pairs_of(ahead, runner_up(logits, labels))[order]
            self.inverter.prefetch(pairs_of(rows, pseudo_targets), later)

    def start_epoch(self) -> None:
        """Forget what the epoch before has seen, and encode what this one will look up; all processes call."""
        self._unvisited.fill_(True)
        if self.dummy_triggers is not None and self._epoch >= self.args.warmup_epochs:
            self.dummy_triggers.start_epoch(self._epoch)
        self.epoch_log = EpochLog()

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Classify images of an evaluation dataset that has the rows of `train_dataset`."""
        pixels, labels = inputs["pixel_values"].to(self.args.device), inputs["labels"].to(self.args.device)
        pixels = pixels if pixels.is_floating_point() else pixels.float() / 255
        with torch.no_grad():
            logits = model(pixel_values=self.normalize(pixels)).logits_per_image
        loss = F.cross_entropy(logits.float(), labels)
        return (loss, None, None) if prediction_loss_only else (loss, logits, labels)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: `Trainer`'s estimate goes through all weights at every step, and knows nothing of features."""
        return 0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """SGD on the context, the only parameter that learns."""
        if self.optimizer is None:
            args, parameters = self.args, self.model.parameters()
            self.optimizer = context_optimizer(parameters, args.learning_rate, args.momentum, args.weight_decay)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Cosine over epochs, constant within one; other `lr_scheduler_type`s as in `Trainer`."""
        if self.args.lr_scheduler_type != "cosine":
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = cosine_over_epochs(
            optimizer or self.create_optimizer(), num_training_steps, self.args.num_train_epochs
        )
        return self.lr_scheduler

    def _get_output_dir(self, trial: Any) -> str:
        return os.path.join(super()._get_output_dir(trial), STAGING_FOLDER)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint under a temporary name and rename it when it is whole."""
        staging = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_job(staging / name, self._job)
            final = staging.parent / name
            shutil.rmtree(final, ignore_errors=True)
            os.replace(staging / name, final)
            shutil.rmtree(staging)
            rotate_checkpoints(str(staging.parent), self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.check_checkpoint(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)


class _EpochCallback(TrainerCallback):
    """Logs the means of an epoch."""

    def __init__(self, trainer: CBPTTrainer):
        self.trainer = trainer
        self.known: set[tuple[int, ...]] = set()
        self.learning_rate = 0.0

    def on_epoch_begin(
        self, args: CBPTTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.start_epoch()
        self.learning_rate = self.trainer.optimizer.param_groups[0]["lr"]
        store = self.trainer.inverter.store
        self.known = set(store.keys()) if store is not None else set()

    def on_epoch_end(
        self, args: CBPTTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = self.trainer
        epoch_log = EpochLog()
        for share in gather_object([trainer.epoch_log]):
            epoch_log.merge(share)
        means = epoch_log.means()
        if not means:
            return
        if epoch_log.looked_up and args.target == "runner_up":
            means["cache_hit_rate"] = epoch_log.cache_hit_rate(self.known)
            if args.use_cache:
                means["inversions"] = len(set(trainer.inverter.store.keys()) - self.known)
        trainer.log(means | {"learning_rate": self.learning_rate})
        names = trainer.model.class_names
        counts = {names[label]: count for label, count in epoch_log.pseudo_targets().most_common()}
        state.log_history[-1]["pseudo_targets"] = counts  # type: ignore[assignment]
