"""Purification as a bi-level `Trainer`: trigger inversion inside, class-wise prompt tuning outside (Eq. 16)."""

import math
import os
import shutil
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

from peft_cbpt.clip.pixels import PixelNormalizer
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.processes import from_all_processes
from peft_cbpt.detection.ladder import Search
from peft_cbpt.detection.reading import Vocabulary
from peft_cbpt.detection.suspects import Suspicion
from peft_cbpt.features.bank import FeatureBank
from peft_cbpt.features.cache import fingerprint
from peft_cbpt.method.losses import l_bn, purification_objective
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.checkpoints import check_checkpoint, write_job
from peft_cbpt.training.class_shares import SharedClassEncoder
from peft_cbpt.training.context_fit import PASSES_AN_EPOCH, ContextFit, fit_optimizer
from peft_cbpt.training.dummy_triggers import DummyTriggers
from peft_cbpt.training.epoch_callback import EpochCallback
from peft_cbpt.training.epoch_log import EpochLog
from peft_cbpt.training.frozen_images import FrozenImages, bank_key, freeze_images, open_cache
from peft_cbpt.training.inner_loop import find_suspicion, make_dummy_triggers
from peft_cbpt.training.optimization import context_optimizer, cosine_over_epochs
from peft_cbpt.training.samples import BankRows, checked_samples, collate
from peft_cbpt.training.text_feature_solver import OuterProblem, Solution, perturbed_epochs, solve

STAGING_FOLDER = ".incomplete"


class CBPTTrainer(Trainer):
    """Tunes the class-wise context of a CBPT adapter so that inverted triggers no longer win.

    The image encoder is frozen and images are not augmented, so clean images are encoded once. What the inner loop
    makes of them, `training.dummy_triggers` says; features are kept on disk for other runs. By default the outer
    problem is then solved on text features, and the steps of the training write the solution into the context; with
    `outer_solver="prompts"` they are those of the paper's loop. Either is a pass of the text tower only. Nothing but
    `cbpt_context` is given a gradient. Several processes share the classes and the images.

    Args:
        model: A CLIP with a CBPT adapter, from `get_peft_model(clip, CBPTConfig(...))`.
        args: The settings.
        train_dataset: Map-style dataset of the clean labelled images D_clean: rows with `pixel_values` ((3, H, W),
            uint8, or float in [0, 1]), `labels` (index into the adapter's `class_names`) and `sample_id`.
        normalize: How [0, 1] pixels become the base model's input; CLIP's own mean and standard deviation if not
            given.
        vocabulary: The classes, and decoys that the scan for suspects is read against besides; see
            `evaluation.vocabulary`. Without decoys if not given.
        suspicion: What `look_for_suspects` found, where the encoder has been repaired since; by default it is called.
        **kwargs: As for `transformers.Trainer`.

    Every epoch logs the mean of each loss, `inversion_success` (share of perturbed images that are classified as y'),
    `clean_accuracy` on the training images and what the dummy triggers add, and keeps in `state.log_history` how often
    each class was y'.
    """

    args: CBPTTrainingArguments

    def __init__(
        self,
        model: PeftModel,
        args: CBPTTrainingArguments,
        train_dataset: Dataset,
        normalize: PixelNormalizer | None = None,
        vocabulary: Vocabulary | None = None,
        suspicion: Suspicion | None = None,
        **kwargs: Any,
    ):
        if args.max_steps > 0:
            batch = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
            steps_per_epoch = math.ceil(len(train_dataset) / batch)  # type: ignore[arg-type]
            args.refuse_to_end_in_warmup(args.max_steps / steps_per_epoch, f"max_steps {args.max_steps}")
        args = args.with_enough_steps(len(train_dataset))  # type: ignore[arg-type]
        self.images = train_dataset
        self.normalize = normalize or PixelNormalizer()
        self.vocabulary, self.suspicion = vocabulary, suspicion
        self.frozen_images: FrozenImages | None = None
        self.dummy_triggers: DummyTriggers | None = None
        self.solution: Solution | None = None
        self.context_fit: ContextFit | None = None
        self.epoch_log = EpochLog()
        prompts: Any = model.active_peft_config
        if args.solves_features and prompts.unified_context:
            raise InputError(
                "one unified context cannot have the features of every class: set outer_solver to prompts"
            )
        if args.eval_on_start and kwargs.get("eval_dataset") is None:
            raise InputError("eval_on_start needs an eval_dataset, and there is none: leave it out")
        kwargs.setdefault("data_collator", collate)
        super().__init__(model, args, train_dataset=BankRows(len(train_dataset)), **kwargs)  # type: ignore[arg-type]
        self.model_accepts_loss_kwargs = False
        self._cache = open_cache(args)
        self._samples = checked_samples(train_dataset, model.class_names)
        self.encode_classes = SharedClassEncoder(model, args.process_index, args.device, args.activation_memory_gb)
        self.add_callback(EpochCallback(self))

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Encode the clean images once, then train as `Trainer.train` does."""
        images = self.frozen_images = self._freeze()
        self.dummy_triggers = make_dummy_triggers(self.model, images, self.args, self.vocabulary, self.suspicion)
        if self.args.solves_features:
            self.context_fit = self._solve(images.bank, self.dummy_triggers)
        return super().train(*args, **kwargs)

    def look_for_suspects(self) -> tuple[Suspicion, list[Search]]:
        """What a scan of the model finds among its classes, and its searches; all processes call."""
        return find_suspicion(self.model, self._freeze(), self.args.seed, self.vocabulary)

    def _freeze(self) -> FrozenImages:
        self.model.to(self.args.device)  # type: ignore[arg-type]
        self.model.eval()
        base: Any = self.model.get_base_model()
        key, cache = self._bank_key, self._cache
        return freeze_images(base, self.images, self._samples, self.normalize, self.args, cache, key)

    @torch.no_grad()
    def _solve(self, bank: FeatureBank, dummies: DummyTriggers) -> ContextFit:
        with self.model.disable_adapter():
            start = self.model.encode_class_prompts().float()
        scale, weights = self._scale.item(), self.args.objective_weights()
        problem = OuterProblem(bank, perturbed_epochs(dummies, bank, start), start, scale, weights)
        with torch.enable_grad():
            self.solution = from_all_processes(solve(problem, self.args.seed))[0]
        return ContextFit(problem, self.solution.features.to(start.device))

    def get_train_dataloader(self) -> DataLoader:
        """Of bank rows; or so many passes over the class prompts, in which every process takes part."""
        if self.args.solves_features:
            return DataLoader(BankRows(PASSES_AN_EPOCH), collate_fn=self.data_collator)
        return super().get_train_dataloader()

    @cached_property
    def _bank_key(self) -> dict[str, Any]:
        """What clean features depend on; the weights are frozen, so that they are hashed once."""
        return bank_key(self.model.get_base_model(), self._samples, self.normalize, self.args.device.type)

    @cached_property
    def _job(self) -> str:
        prompts: Any = self.model.active_peft_config
        wording = {name: getattr(prompts, name) for name in ("class_names", "class_token_position", "template")}
        inner = {"bank": self._bank_key, "inner_loop": self.args.inner_loop(), "seed": self.args.seed}
        if self.args.solves_features:
            return fingerprint(inner | wording | {"objective": repr(self.args.objective_weights())})
        kept = {name: getattr(self.args, name) for name in ("learning_rate", "momentum", "weight_decay")}
        return fingerprint(inner | wording | {"optimizer": kept})

    def check_checkpoint(self, folder: str) -> None:
        """See that a checkpoint is whole and of this job.

        Raises:
            InputError: if it is not.
        """
        (learned,) = [tuple(parameter.shape) for parameter in self.model.parameters() if parameter.requires_grad]
        adapter_name: Any = self.model.active_adapter
        check_checkpoint(Path(folder), self._job, adapter_name, learned)

    @property
    def _scale(self) -> Tensor:
        scale: Tensor = self.model.get_base_model().logit_scale.detach().float().exp()
        return scale

    def _logits(self, features: Tensor, class_features: Tensor) -> Tensor:
        return self._scale * features @ class_features.T

    @property
    def _epoch(self) -> int:
        return math.floor((self.state.epoch or 0) + 1e-6)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        """The outer objective of Eq. 16 on a batch of bank rows; L_bn of the clean images during prompt warm-up.

        With `outer_solver="features"` the divergence of the class prompts from the solution instead.
        """
        if self.context_fit is not None:
            with self.accelerator.autocast():
                loss = self.context_fit.loss(partial(self.encode_classes, model), self.state.global_step)
            return (loss, {}) if return_outputs else loss
        assert self.frozen_images is not None and self.dummy_triggers is not None
        rows, bank = inputs["rows"], self.frozen_images.bank
        labels = bank.labels[rows]
        with self.accelerator.autocast():
            class_features = self.encode_classes(model)
        logits = self._logits(bank.features[rows], class_features)
        clean_accuracy = (logits.argmax(1) == labels).float().mean()
        if self._epoch < self.args.warmup_epochs:
            loss = l_bn(logits, None, labels, self.args.alpha)
            self.epoch_log.add(len(rows), loss_bn=loss.detach(), clean_accuracy=clean_accuracy)
            loss = self.args.lambda_bn * loss
            return (loss, {"logits": logits}) if return_outputs else loss

        perturbed, pseudo_targets = self.dummy_triggers.perturbed_features(rows, logits.detach(), self._epoch)
        perturbed_logits = self._logits(perturbed, class_features)
        weights = self.args.objective_weights()
        loss, parts = purification_objective(logits, perturbed_logits, labels, pseudo_targets, weights)
        self.epoch_log.add(len(rows), **parts, clean_accuracy=clean_accuracy)
        changed = (perturbed != bank.features[rows]).any(1).nonzero()[:, 0]
        if len(changed):
            reached = (perturbed_logits.argmax(1) == pseudo_targets)[changed].float().mean()
            self.epoch_log.add(len(changed), inversion_success=reached)
            self.epoch_log.looked_up += zip(rows[changed].tolist(), pseudo_targets[changed].tolist(), strict=True)
        return (loss, {"logits": logits}) if return_outputs else loss

    @torch.no_grad()
    def start_epoch(self) -> None:
        """Forget what the epoch before has seen, and make the dummy triggers of this one; all processes call."""
        assert self.frozen_images is not None and self.dummy_triggers is not None
        self.epoch_log = EpochLog()
        if self.context_fit is not None:
            self.context_fit.begin(self._encode_as_is, self.state.log_history)
            return
        if self._epoch >= self.args.warmup_epochs:
            bank, class_features = self.frozen_images.bank, self.encode_classes(self.model)  # type: ignore[arg-type]
            self.dummy_triggers.start_epoch(
                self._epoch, lambda rows: self._logits(bank.features[rows], class_features)
            )

    def _encode_as_is(self, classes: Sequence[int] | None) -> Tensor:
        return self.encode_classes(self.model, classes)  # type: ignore[arg-type]

    def end_epoch(self) -> dict[str, float]:
        """What the epoch is summed up by; empty if it had no step. All processes call."""
        if self.context_fit is not None:
            return self.context_fit.figures(self._epoch - 1)
        shares, self.epoch_log = gather_object([self.epoch_log]), EpochLog()
        for share in shares:
            self.epoch_log.merge(share)
        means = self.epoch_log.means()
        if self.epoch_log.looked_up:
            assert self.dummy_triggers is not None
            means |= self.dummy_triggers.epoch_figures(self.epoch_log.looked_up)
        return means

    def pseudo_targets(self) -> dict[str, int]:
        """How often each class was y' in the epoch that has ended."""
        if self.context_fit is not None:
            counts = self.context_fit.problem.pseudo_targets(self._epoch - 1)
        else:
            counts = self.epoch_log.pseudo_targets()
        names: Any = self.model.class_names
        return {names[label]: count for label, count in counts.most_common()}

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
        """SGD on the context, the only parameter that learns; Adam where it learns the solution."""
        if self.optimizer is None and self.args.solves_features:
            words = self.model.get_base_model().text_model.embeddings.token_embedding.weight
            self.optimizer = fit_optimizer(self.model.parameters(), words)
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
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                write_job(staging / name, self._job)
                final = staging.parent / name
                shutil.rmtree(final, ignore_errors=True)
                os.replace(staging / name, final)
                rotate_checkpoints(str(staging.parent), self.args.save_total_limit)
        finally:
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.check_checkpoint(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
