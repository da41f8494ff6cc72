"""Purification as a bi-level `Trainer`: trigger inversion inside, class-wise prompt tuning outside (Eq. 16)."""

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

from peft_cbpt.clip.pixels import PixelNormalizer, image_encoder
from peft_cbpt.purification.feature_bank import TriggerInverter, build_feature_bank
from peft_cbpt.purification.losses import l_bn, purification_objective
from peft_cbpt.purification.targets import runner_up
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.checkpoints import CACHE_FILE, check_checkpoint, job_hash
from peft_cbpt.training.epoch_log import EpochLog
from peft_cbpt.training.forward_redirection import call_through
from peft_cbpt.training.samples import BankRows, checked_samples, collate
from peft_cbpt.tuner.fingerprint import weights_fingerprint

STAGING_FOLDER = ".incomplete"


class CBPTTrainer(Trainer):
    """Tunes the class-wise context of a CBPT adapter so that inverted triggers no longer win.

    The image encoder is frozen and images are not augmented, so clean images are encoded once and the inner loop runs
    once for every pair of an image and its y' (see `purification.feature_bank`); an outer step is a pass of the text
    tower only. Nothing but `cbpt_context` is given a gradient.

    Args:
        model: A CLIP with a CBPT adapter, from `get_peft_model(clip, CBPTConfig(...))`.
        args: The settings.
        train_dataset: Map-style dataset of the clean labelled images D_clean: rows with `pixel_values` ((3, H, W),
            uint8, or float in [0, 1]), `labels` (index into the adapter's `class_names`) and `sample_id`.
        normalize: How [0, 1] pixels become the base model's input; CLIP's own mean and standard deviation if not
            given.
        **kwargs: As for `transformers.Trainer`.

    Every epoch logs the mean of each loss, `inversion_success` (share of perturbed images that are classified as y'),
    `cache_hit_rate`, `clean_accuracy` on the training images, and keeps in `state.log_history` how often each class
    was y'.
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
        self.epoch_log = EpochLog()
        kwargs.setdefault("data_collator", collate)
        super().__init__(model, args, train_dataset=BankRows(len(train_dataset)), **kwargs)  # type: ignore[arg-type]
        self.model_accepts_loss_kwargs = False
        self._samples = checked_samples(train_dataset, model.class_names)
        self.add_callback(_EpochCallback(self))

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Encode the clean images once, then train as `Trainer.train` does."""
        self.inverter = self._make_inverter()
        return super().train(*args, **kwargs)

    @cached_property
    def _job(self) -> str:
        class_names: Any = self.model.class_names
        base = weights_fingerprint(self.model.get_base_model())
        settings = asdict(self.args.inversion_settings())
        return job_hash(base, class_names, self._samples, settings, self.args.positives, self.args.seed)

    def check_checkpoint(self, folder: str) -> None:
        """See that a checkpoint is whole and of this job.

        Raises:
            InputError: if it is not.
        """
        (learned,) = [tuple(parameter.shape) for parameter in self.model.parameters() if parameter.requires_grad]
        check_checkpoint(Path(folder), self._job, learned)

    def _load_pixels(self, rows: Sequence[int]) -> Tensor:
        pixels = torch.stack([self.images[row]["pixel_values"] for row in rows])
        return pixels if pixels.is_floating_point() else pixels.float() / 255

    def _make_inverter(self) -> TriggerInverter:
        labels = torch.tensor([label for label, _ in self._samples])
        sample_ids = [name for _, name in self._samples]
        self.model.to(self.args.device)  # type: ignore[arg-type]
        self.model.eval()
        encode_image = image_encoder(self.model.get_base_model(), self.normalize)
        bank = build_feature_bank(
            encode_image,
            self._load_pixels,
            labels,
            sample_ids,
            self.args.device,
            self.args.inversion_batch_size,
        )
        return TriggerInverter(
            encode_image,
            self._load_pixels,
            bank,
            self.args.inversion_settings(),
            self.args.positives,  # type: ignore[arg-type]
            self.args.inversion_batch_size,
            self.args.seed,
            self.args.use_cache,
        )

    def _class_features(self, model: nn.Module) -> Tensor:
        """Unit-norm features (n_classes, D) of the class prompts, through the wrapped model."""
        unwrapped = self.accelerator.unwrap_model(model)
        with self.accelerator.autocast():
            return call_through(model, unwrapped, unwrapped.encode_class_prompts, None, self.args.text_chunk_size)

    def _clean_logits(self, rows: Tensor | slice, class_features: Tensor) -> Tensor:
        assert self.inverter is not None
        scale = self.model.get_base_model().logit_scale.detach().float().exp()
        return scale * self.inverter.bank.features[rows] @ class_features.T

    @property
    def _warming_up(self) -> bool:
        return math.floor((self.state.epoch or 0) + 1e-6) < self.args.warmup_epochs

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        """The outer objective of Eq. 16 on a batch of bank rows; L_bn of the clean images during prompt warm-up."""
        assert self.inverter is not None
        rows = inputs["rows"]
        labels = self.inverter.bank.labels[rows]
        class_features = self._class_features(model)
        logits = self._clean_logits(rows, class_features)
        clean_accuracy = (logits.argmax(1) == labels).float().mean()
        if self._warming_up:
            loss = l_bn(logits, None, labels, self.args.alpha)
            self.epoch_log.add(len(rows), loss_bn=loss.detach(), clean_accuracy=clean_accuracy)
            loss = self.args.lambda_bn * loss
            return (loss, {"logits": logits}) if return_outputs else loss

        pseudo_targets = runner_up(logits.detach(), labels)
        perturbed = self.inverter.perturbed_features(rows, pseudo_targets)
        scale = self.model.get_base_model().logit_scale.detach().float().exp()
        perturbed_logits = scale * perturbed @ class_features.T
        weights = self.args.objective_weights()
        loss, parts = purification_objective(logits, perturbed_logits, labels, pseudo_targets, weights)
        reached = (perturbed_logits.argmax(1) == pseudo_targets).float().mean()
        self.epoch_log.add(
            len(rows),
            **parts,
            clean_accuracy=clean_accuracy,
            inversion_success=reached,
        )
        self.epoch_log.looked_up += zip(rows.tolist(), pseudo_targets.tolist(), strict=True)
        return (loss, {"logits": logits}) if return_outputs else loss

    @torch.no_grad()
    def prefetch_inversions(self) -> None:
        """Invert at once what this epoch will need if the prompts stood still; the steps fill in the rest."""
        assert self.inverter is not None
        labels = self.inverter.bank.labels
        pseudo_targets = runner_up(self._clean_logits(slice(None), self.model.encode_class_prompts()), labels)
        self.inverter.prefetch(torch.arange(len(labels), device=labels.device), pseudo_targets)

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

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """SGD on the context, the only parameter that learns."""
        if self.optimizer is None:
            learned = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            self.optimizer = torch.optim.SGD(
                learned, self.args.learning_rate, momentum=self.args.momentum, weight_decay=self.args.weight_decay
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Cosine over epochs, constant within one; other `lr_scheduler_type`s as in `Trainer`."""
        if self.args.lr_scheduler_type != "cosine":
            return super().create_scheduler(num_training_steps, optimizer)
        epochs = math.ceil(self.args.num_train_epochs)
        steps_per_epoch = max(1, round(num_training_steps / self.args.num_train_epochs))

        def cosine(step: int) -> float:
            return (1 + math.cos(math.pi * min(step // steps_per_epoch, epochs) / epochs)) / 2

        self.lr_scheduler = LambdaLR(optimizer or self.create_optimizer(), cosine)
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
            assert self.inverter is not None
            save_file(self.inverter.cache.state_dict(), staging / name / CACHE_FILE, {"job": self._job})
            final = staging.parent / name
            shutil.rmtree(final, ignore_errors=True)
            os.replace(staging / name, final)
            shutil.rmtree(staging)
            rotate_checkpoints(str(staging.parent), self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.check_checkpoint(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        assert self.inverter is not None
        kept = load_file(Path(resume_from_checkpoint) / CACHE_FILE)
        self.inverter.cache.load_state_dict(kept, self.inverter.bank.features.device)


class _EpochCallback(TrainerCallback):
    """Gathers cache misses before an epoch and logs its means after it."""

    def __init__(self, trainer: CBPTTrainer):
        self.trainer = trainer
        self.known: set[tuple[int, int]] = set()
        self.learning_rate = 0.0

    def on_epoch_begin(
        self, args: CBPTTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.epoch_log = EpochLog()
        self.learning_rate = self.trainer.optimizer.param_groups[0]["lr"]
        self.known = set(self.trainer.inverter.cache.rows_of)
        if args.use_cache and not self.trainer._warming_up:
            self.trainer.prefetch_inversions()

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
        if epoch_log.looked_up:
            means["cache_hit_rate"] = epoch_log.cache_hit_rate(self.known)
        trainer.log(means | {"learning_rate": self.learning_rate})
        names = trainer.model.class_names
        counts = {names[label]: count for label, count in epoch_log.pseudo_targets().most_common()}
        state.log_history[-1]["pseudo_targets"] = counts  # type: ignore[assignment]
