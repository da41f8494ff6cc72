"""The encoder's part of a purification: trained, left as a plain LoRA in a folder, and found there again."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import Tensor

from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import removed_afterwards, write_json
from peft_cbpt.detection.ladder import Search
from peft_cbpt.features.cache import fingerprint
from peft_cbpt.training.checkpoints import JOB_FILE
from peft_cbpt.training.encoder_arguments import WITHOUT_EFFECT, EncoderPurifierArguments
from peft_cbpt.training.encoder_trainer import EncoderPurifier, last_checkpoint
from peft_cbpt.tuner.encoder import encoder_weights, write_lora

STAGING_FOLDER = ".incomplete"
ELSEWHERE = ("output_dir", "disable_tqdm", "report_to", "resume_from_checkpoint", "save_steps", "save_total_limit")
"""Settings that change no result."""


def used_settings(args: EncoderPurifierArguments) -> dict[str, Any]:
    """All settings but those that have no effect."""
    unused = {name for names in WITHOUT_EFFECT.values() for name in names}
    return {name: value for name, value in args.to_dict().items() if name not in unused}


def encoder_job(base: str, samples: str, args: EncoderPurifierArguments) -> str:
    """Hash of all that the result depends on.

    Args:
        base: Fingerprint of the model.
        samples: Digest of the images.
        args: The settings.
    """
    settings = {name: str(value) for name, value in used_settings(args).items() if name not in ELSEWHERE}
    return fingerprint({"base": base, "samples": samples, "settings": settings})


class EncoderStage:
    """A run of `EncoderPurifier` in a folder of its own, which is gone on with or found finished.

    Args:
        folder: Where checkpoints and the LoRA are.
        job: Of `encoder_job`.
        resume: Whether to go on with what is there.
        overwrite: Whether what is there of another job may be removed.

    Raises:
        InputError: if what is there is of another job and may not be removed.
    """

    def __init__(self, folder: Path, job: str, resume: bool, overwrite: bool):
        self.folder, self.job = folder, job
        self.epochs: list[dict[str, Any]] = []
        there = self._read()
        if there and there["job"] != job and (resume or not overwrite):
            raise InputError(
                f"{folder} is of a run with another model, images, seed or settings of the encoder: go on with that "
                "run's own settings and --resume_from_checkpoint true, name another output_dir, or give "
                "--overwrite_output_dir true"
            )
        self.resumes = bool(resume and there)
        self.finished = bool(self.resumes and there and "epochs" in there and (folder / CONFIG_NAME).is_file())
        if self.finished and there:
            self.epochs = there["epochs"]

    def _read(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.folder / JOB_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    @property
    def checkpoint(self) -> str | None:
        """The last one that is whole."""
        return last_checkpoint(self.folder) if self.resumes else None

    def run(
        self,
        clip: LoadedCLIP,
        images: Any,
        args: EncoderPurifierArguments,
        base: str,
        searches: Sequence[Search] | None = None,
        suspected: Sequence[Tensor] = (),
    ) -> PeftModel:
        """The CLIP with its LoRA; all processes call.

        Args:
            clip: The CLIP, without adapters, in which the LoRA is put.
            images: Rows of `pixel_values`.
            args: The settings.
            base: What the LoRA's config calls the model.
            searches: What a scan of the model found, where one was made.
            suspected: Directions (D,) in which something there moves images that is as rare as a finding.
        """
        state = PartialState()
        if self.finished:
            return PeftModel.from_pretrained(clip.model, str(self.folder)).eval()
        checkpoint = self.checkpoint
        if state.is_main_process:
            if checkpoint is None:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(parents=True)
            write_json(self.folder / JOB_FILE, {"job": self.job})
        state.wait_for_everyone()
        trainer = EncoderPurifier(clip.model, args, images, clip.normalize, searches, suspected)
        trainer.train(resume_from_checkpoint=checkpoint)
        self.epochs = [entry for entry in trainer.state.log_history if "loss_hold" in entry]
        purified: Any = trainer.accelerator.unwrap_model(trainer.model)
        if state.is_main_process:
            self._save(purified, base)
        state.wait_for_everyone()
        return purified.eval()

    def _save(self, purified: PeftModel, base: str) -> None:
        """Under a temporary name first, the weights last; then the record that says it is finished."""
        staging = self.folder / STAGING_FOLDER
        name: Any = purified.active_adapter
        with removed_afterwards(staging):
            config: Any = purified.peft_config[name]
            write_lora(staging, config, encoder_weights(purified, name), base or None)
            for file in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
                os.replace(staging / file, self.folder / file)
        write_json(self.folder / JOB_FILE, {"job": self.job, "epochs": self.epochs})
