"""Purify a suspicious CLIP: measure it, tune class-wise prompts against inverted triggers, measure again."""

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from peft_cbpt.attacks.attack_file import Attack, read_attacks
from peft_cbpt.clip.loading import LoadedCLIP, load_clip
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.clip.templates import PLAIN_TEMPLATE
from peft_cbpt.commands.parsing import parse
from peft_cbpt.commands.push import name_of_base, plan_push
from peft_cbpt.commands.results import (
    SCHEMA_VERSION,
    Stopwatch,
    measure,
    peak_memory_bytes,
    print_table,
    settings_of,
)
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import prepare_output, write_json
from peft_cbpt.common.versions import package_versions
from peft_cbpt.data.few_shot import sample_few_shots
from peft_cbpt.data.images import LabelledImages, load_labelled_images
from peft_cbpt.data.skipping import Skipped
from peft_cbpt.evaluation.measure import encode_images
from peft_cbpt.hub.adapter_folder import RESULTS_FILE
from peft_cbpt.hub.card import write_card
from peft_cbpt.hub.sharing import shareable
from peft_cbpt.pocket.model import resolve_model
from peft_cbpt.reports.before_after import PICTURE_FILE, draw_before_after
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.cbpt_trainer import STAGING_FOLDER, CBPTTrainer
from peft_cbpt.tuner import CBPTConfig
from peft_cbpt.tuner.fingerprint import weights_fingerprint

POCKET_IMAGES_PER_CLASS = 32
EVALUATION_BATCH_SIZE = 64


@dataclass
class PurifyArguments:
    """What to purify, with which images, and which triggers to measure."""

    model_name_or_path: str = field(metadata={"help": "The suspicious CLIP: a folder, a Hub id or pocket:NAME."})
    dataset_name: str = field(metadata={"help": "Clean images: pocket:DOMAIN, a folder, or a Hub id."})
    dataset_split: str = field(default="train", metadata={"help": "Split the shots are sampled from."})
    test_dataset_name: str | None = field(default=None, metadata={"help": "Test images; dataset_name by default."})
    test_split: str = field(default="test", metadata={"help": "Split that is measured on."})
    image_column: str = field(default="image", metadata={"help": "Column of images."})
    label_column: str = field(default="label", metadata={"help": "Column of labels."})
    class_names_file: str | None = field(default=None, metadata={"help": "Names of classes whose labels are numbers."})
    class_names: list[str] | None = field(default=None, metadata={"help": "Classes to keep, in label order."})
    num_classes: int | None = field(default=None, metadata={"help": "Keep the first so many classes."})
    num_shots: int = field(default=16, metadata={"help": "Clean images per class."})
    test_images_per_class: int = field(default=20, metadata={"help": "Test images the pocket world draws per class."})
    attacks: list[str] = field(
        default_factory=list,
        metadata={"help": "Attacks to measure: attack.json files, folders with one, or pocket:NAME."},
    )
    num_context_tokens: int = field(default=4, metadata={"help": "M of Eq. 8."})
    unified_context: bool = field(default=False, metadata={"help": "One context for all classes, not one for each."})
    class_token_position: str = field(default="end", metadata={"help": "end, middle or front."})
    template: str = field(default=PLAIN_TEMPLATE, metadata={"help": "Prompt of the undefended classifier."})
    base_model_id: str | None = field(
        default=None, metadata={"help": "Hub id of the model, where model_name_or_path is a folder."}
    )


def purify(argv: Sequence[str]) -> None:
    """Run the main job; see `recipes/purify.py`."""
    arguments, training = parse([PurifyArguments, CBPTTrainingArguments], argv, __doc__ or "")
    stopwatch = Stopwatch()
    output = prepare_output(training.output_dir)
    set_seed(training.seed)
    base = name_of_base(arguments.model_name_or_path, arguments.base_model_id)
    push = plan_push(training, base)

    with stopwatch("load"):
        clip = load_clip(resolve_model(arguments.model_name_or_path))
        clip.model.name_or_path = clip.model.config._name_or_path = ""  # so that no path gets into a checkpoint
        train_images, test_images, class_names, skipped_shots = load_images(arguments, training.seed, clip)
        attacks = read_attacks(arguments.attacks, class_names)
        model = _attach(arguments, class_names, clip)
        _check_room(model, clip, attacks)
        trainer = _make_trainer(model, training, train_images, clip)
        checkpoint = _find_checkpoint(training.resume_from_checkpoint, output, trainer)
        fingerprint_before = weights_fingerprint(clip.model)
    with stopwatch("measure before"):
        triggers = {name: attack.trigger for name, attack in attacks.items()}
        encoder = image_encoder(clip.model, clip.normalize)
        model.to(training.device).eval()
        encoded = encode_images(encoder, test_images, triggers, training.device, EVALUATION_BATCH_SIZE)
        test_images = test_images.without(encoded.skipped)
        before_features = class_features(model, clip, adapter=False)
        before = measure(encoded, before_features, attacks, class_names)
    with stopwatch("purify"):
        _train(trainer, checkpoint, output)
    with stopwatch("measure after"):
        after_features = class_features(model, clip, adapter=True)
        after = measure(encoded, after_features, attacks, class_names)

    if PartialState().is_main_process:
        for stale in (RESULTS_FILE, PICTURE_FILE):
            (output / stale).unlink(missing_ok=True)
        config = _save_adapter(model, output, base)
        results = {
            **_job_record(arguments, trainer, class_names, attacks),
            "base_fingerprint": {"before": fingerprint_before, "after": weights_fingerprint(clip.model)},
            "n_test_images": len(encoded.labels),
            "skipped": {
                "shots": [one.as_dict() for one in skipped_shots],
                "test": [one.as_dict() for one in encoded.skipped],
            },
            "before": before,
            "after": after,
            "seconds": stopwatch.seconds,
        }
        write_json(output / RESULTS_FILE, shareable(results))
        draw_before_after(
            output / PICTURE_FILE, test_images, encoded, attacks, class_names, before_features, after_features
        )
        write_card(output, config, training.hub_model_id)
        print_table(results, output)
        if push:
            print(f"pushed: {push(output).commit_url}")


def load_images(
    arguments: PurifyArguments, seed: int, clip: LoadedCLIP
) -> tuple[LabelledImages, LabelledImages, list[str], list[Skipped]]:
    """Few-shot training images, test images, their class names, checked against each other; shots passed over."""
    load = partial(
        load_labelled_images,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
        class_names_file=arguments.class_names_file,
    )
    if arguments.num_shots < 1:
        raise InputError(f"num_shots must be at least 1, it is {arguments.num_shots}")
    pool = load(
        arguments.dataset_name,
        arguments.dataset_split,
        arguments.class_names,
        arguments.num_classes,
        images_per_class=max(POCKET_IMAGES_PER_CLASS, arguments.num_shots),
    )
    class_names = pool.features["label"].names
    test = load(
        arguments.test_dataset_name or arguments.dataset_name,
        arguments.test_split,
        class_names,
        images_per_class=arguments.test_images_per_class,
    )
    shots, skipped = sample_few_shots(LabelledImages(pool, clip.image_processor), arguments.num_shots, seed)
    same_source = arguments.test_dataset_name in (None, arguments.dataset_name)
    if same_source and set(shots.dataset["sample_id"]) & set(test["sample_id"]):
        raise InputError(
            f"split {arguments.test_split!r} of {arguments.dataset_name} holds the training shots themselves: put the "
            "images into train/ and test/ folders, or name another test_split or test_dataset_name"
        )
    return shots, LabelledImages(test, clip.image_processor), class_names, skipped


def _attach(arguments: PurifyArguments, class_names: list[str], clip: LoadedCLIP) -> PeftModel:
    try:
        config = CBPTConfig(
            class_names=class_names,
            num_context_tokens=arguments.num_context_tokens,
            unified_context=arguments.unified_context,
            class_token_position=arguments.class_token_position,
            template=arguments.template,
        )
        return get_peft_model(clip.model, config.tokenize(clip.tokenizer).record_base(clip.model))
    except ValueError as error:
        raise InputError(str(error)) from error


def _check_room(model: PeftModel, clip: LoadedCLIP, attacks: Mapping[str, Attack]) -> None:
    """See that attacks' text triggers fit before the longest prompt, learned or of the template."""
    with model.disable_adapter():
        longest = max(model.class_prompt_lengths())
    room = clip.max_text_length - max(longest, *model.class_prompt_lengths())
    for name, attack in attacks.items():
        if (needed := len(clip.word_ids(attack.text_trigger))) > room:
            raise InputError(
                f"the text trigger of {name} has {needed} tokens, but before the prompts is room for {room}: "
                "lower num_context_tokens, or leave this attack out"
            )


def _make_trainer(
    model: PeftModel, training: CBPTTrainingArguments, images: LabelledImages, clip: LoadedCLIP
) -> CBPTTrainer:
    try:
        return CBPTTrainer(model, training, images, clip.normalize)
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        raise InputError(str(error)) from error


def _find_checkpoint(wanted: str | None, output: Path, trainer: CBPTTrainer) -> str | None:
    if wanted is None or wanted.lower() == "false":
        return None
    checkpoint = get_last_checkpoint(str(output)) if wanted.lower() == "true" else wanted
    if checkpoint is None:
        return None
    if not Path(checkpoint).is_dir():
        raise InputError(f"{checkpoint} is no checkpoint folder: give one, or true for the last in output_dir")
    trainer.check_checkpoint(checkpoint)
    return checkpoint


def _train(trainer: CBPTTrainer, checkpoint: str | None, output: Path) -> None:
    """Train; a run that starts anew takes the place of the checkpoints of an earlier one."""
    if checkpoint is None and PartialState().is_main_process:
        for old in output.glob("checkpoint-*"):
            shutil.rmtree(old)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt:
        print("to go on from the last whole epoch, run again with --resume_from_checkpoint true", file=sys.stderr)
        raise


def class_features(model: PeftModel, clip: LoadedCLIP, adapter: bool) -> Callable[[str], Tensor]:
    """Text features (n_classes, D) of the learned prompts after a text trigger, or of the template prompts."""

    @cache
    @torch.no_grad()
    def features(text_trigger: str) -> Tensor:
        model.eval()
        with nullcontext() if adapter else model.disable_adapter():
            return model.encode_class_prompts(prefix_ids=clip.word_ids(text_trigger)).cpu()

    return features


def _job_record(
    arguments: PurifyArguments, trainer: CBPTTrainer, class_names: list[str], attacks: Mapping[str, Attack]
) -> dict[str, Any]:
    """What results.json says of the job and its training; for the rest see docs/results-schema.md."""
    training: Any = trainer.args
    images: Any = trainer.images
    return {
        "schema_version": SCHEMA_VERSION,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": arguments.model_name_or_path,
        "class_names": class_names,
        "attacks": {name: attack.as_dict() for name, attack in attacks.items()},
        "shots": list(images.dataset["sample_id"]),
        "suspects": _suspects(trainer, class_names),
        "epochs": [entry for entry in trainer.state.log_history if "loss_bn" in entry],
        "peak_memory_bytes": peak_memory_bytes(training.device),
        "settings": settings_of(arguments, training),
        "seed": training.seed,
        "versions": package_versions(),
    }


def _suspects(trainer: CBPTTrainer, class_names: list[str]) -> list[dict] | None:
    """The classes that the model seemed backdoored towards; None if they were not looked for."""
    suspicion = trainer.dummy_triggers.suspicion if trainer.dummy_triggers else None
    if suspicion is None:
        return None
    found = suspicion.suspects
    return [{"class": class_names[one.label], "evidence": one.evidence, "score": round(one.score, 2)} for one in found]


def _save_adapter(model: PeftModel, output: Path, base: str) -> CBPTConfig:
    """Save the adapter for the base of that name under a temporary name, then move its files, the weights last."""
    staging = output / STAGING_FOLDER
    shutil.rmtree(staging, ignore_errors=True)
    model.save_pretrained(str(staging))
    config = CBPTConfig.from_pretrained(staging)
    config.base_model_name_or_path = base or None
    config.save_pretrained(str(staging))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        os.replace(staging / name, output / name)
    shutil.rmtree(staging)
    return config
