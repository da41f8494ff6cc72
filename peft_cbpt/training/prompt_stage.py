"""The prompts' part of a purification: tuned on the encoder as it is, or on a repaired one."""

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import set_seed

from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.detection.suspects import Suspicion
from peft_cbpt.evaluation.classifiers import adapter_features
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.cbpt_trainer import CBPTTrainer
from peft_cbpt.training.checkpoints import find_checkpoint
from peft_cbpt.training.held_out import kept_right, split_shots
from peft_cbpt.tuner import CBPTConfig, with_encoder

CONTEXT = "base_model.model.text_model.embeddings.token_embedding.cbpt_context.default"


@contextmanager
def unnamed(clip: LoadedCLIP, *adapted: Any) -> Iterator[None]:
    """While the block runs, models and adapters know no name of the base, so that no path gets into what is saved."""
    models: list[Any] = [clip.model, *(one.get_base_model() for one in adapted)]
    configs: list[Any] = [one.active_peft_config for one in adapted]
    names = [(one.name_or_path, one.config._name_or_path) for one in models]
    bases = [one.base_model_name_or_path for one in configs]
    for model in models:
        model.name_or_path = model.config._name_or_path = ""
    for config in configs:
        config.base_model_name_or_path = ""
    try:
        yield
    finally:
        for model, (name, in_config) in zip(models, names, strict=True):
            model.name_or_path, model.config._name_or_path = name, in_config
        for config, name in zip(configs, bases, strict=True):
            config.base_model_name_or_path = name


def tune_on(
    purified: PeftModel,
    prompts: CBPTConfig,
    first: CBPTTrainer,
    clip: LoadedCLIP,
    undefended: Tensor,
    training: CBPTTrainingArguments,
    suspicion: Suspicion,
    output: Path,
) -> tuple[PeftModel, CBPTTrainer, dict[str, Any]]:
    """Prompts on a repaired encoder, tuned on a copy into which it is merged; with both in one adapter.

    Where they are not right more often than the template's, on shots that they were not tuned on, they are the
    template's.

    Args:
        purified: The CLIP with the LoRA that repairs its encoder; it gets the adapter.
        prompts: The prompts before tuning.
        first: The trainer of these prompts on the encoder as it was.
        clip: The CLIP.
        undefended: Features of the template prompts (n_classes, D).
        training: The settings.
        suspicion: What `first` found.
        output: Where checkpoints are.

    Returns:
        The CLIP with the adapter, the trainer, and whether the tuned prompts were kept (docs/results-schema.md).
    """
    set_seed(training.seed)
    tuned = copy.deepcopy(prompts)
    tuned.base_fingerprint = None
    merged = get_peft_model(copy.deepcopy(purified).merge_and_unload(), tuned)
    shots, held = split_shots(first.images)
    trainer = CBPTTrainer(merged, training, shots, clip.normalize, first.vocabulary, suspicion)
    checkpoint = find_checkpoint(training.resume_from_checkpoint, output, trainer.check_checkpoint, overwrite=True)
    tune(trainer, clip, checkpoint, output)
    record: dict[str, Any] = {"kept": "tuned", "n_held_out": 0 if held is None else len(held)}
    words = template_prompts(prompts, clip)
    if words is not None and held is not None and trainer.dummy_triggers is not None:
        base: Any = merged.get_base_model()
        encode, found = image_encoder(base, clip.normalize), trainer.dummy_triggers.triggers.values()
        heads = [adapter_features(merged, clip)(""), undefended]
        scores = kept_right(encode, heads, held, found, base.device)
        record |= {"tuned": scores[0], "template": scores[1]}
    if words is not None and record.get("tuned", 0.0) <= record.get("template", 1.0):
        return with_encoder(purified, words), trainer, record | {"kept": "template"}
    model = with_encoder(purified, prompts)
    context, learned = (one.get_parameter(CONTEXT) for one in (model, merged))
    context.data.copy_(learned.data)
    return model, trainer, record


def template_prompts(prompts: CBPTConfig, clip: LoadedCLIP) -> CBPTConfig | None:
    """The same prompts with the template's words as their context; None where they are not of its shape."""
    try:
        return replace(prompts, context_init="template").tokenize(clip.tokenizer)
    except ValueError:
        return None


def tune(trainer: CBPTTrainer, clip: LoadedCLIP, checkpoint: str | None, output: Path) -> None:
    """Train; a run that starts anew takes the place of its own earlier checkpoints."""
    if checkpoint is None and PartialState().is_main_process:
        for old in output.glob("checkpoint-*"):
            shutil.rmtree(old)
    with unnamed(clip, trainer.model):
        trainer.train(resume_from_checkpoint=checkpoint)
