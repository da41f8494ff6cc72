"""Purify a suspicious CLIP: measure it, tune class-wise prompts against dummy triggers, measure again, save."""

import copy
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate import PartialState
from huggingface_hub import CommitInfo
from peft import PeftModel, get_peft_model
from transformers import CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import SaveStrategy

from peft_cbpt.attacks.attack_file import Attack, read_attacks
from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import alone_in, prepare_output, removed_afterwards, write_json
from peft_cbpt.common.records import Stopwatch, made_now, peak_memory_bytes
from peft_cbpt.convert.checkpoint_arguments import NOTHING_GIVEN, CheckpointArguments
from peft_cbpt.data.shots import Images, ShotsAndTest, name_of_images, shots_and_test
from peft_cbpt.detection.found import save_triggers
from peft_cbpt.evaluation.classifiers import adapter_features, check_room
from peft_cbpt.evaluation.measure import EncodedImages, encode_images, measure
from peft_cbpt.evaluation.vocabulary import make_vocabulary
from peft_cbpt.features.plan import Plan
from peft_cbpt.hub.adapter_folder import RESULTS_FILE, SCHEMA_VERSION, TRIGGERS_FILE
from peft_cbpt.hub.card import write_card
from peft_cbpt.hub.push import name_of_base, plan_push
from peft_cbpt.hub.sharing import shareable
from peft_cbpt.pocket.model import open_clip
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.cbpt_trainer import STAGING_FOLDER, CBPTTrainer
from peft_cbpt.training.checkpoints import find_checkpoint
from peft_cbpt.training.dummy_triggers import suspects_of
from peft_cbpt.training.plan import plan_tuning
from peft_cbpt.training.purify_arguments import PurifyArguments
from peft_cbpt.tuner import CBPTConfig
from peft_cbpt.tuner.fingerprint import weights_fingerprint

EVALUATION_BATCH_SIZE = 64


@dataclass(frozen=True)
class Purified:
    """What `purify` made.

    Args:
        model: The CLIP with its adapter: `model(pixel_values=pixels).logits_per_image` is (B, n_classes).
        clip: The same CLIP with tokenizer and image processor.
        results: The content of `results.json` (docs/results-schema.md).
        output_dir: Where it was saved, if it was.
        commit: Where it was pushed to, if it was.
    """

    model: PeftModel
    clip: LoadedCLIP
    results: dict[str, Any]
    output_dir: Path | None = None
    commit: CommitInfo | None = None


@dataclass(frozen=True)
class Job:
    """All that a run needs, opened and checked."""

    clip: LoadedCLIP
    model: PeftModel
    data: ShotsAndTest
    attacks: Mapping[str, Attack]
    trainer: CBPTTrainer
    checkpoint: str | None
    fingerprint: str


@dataclass(frozen=True)
class Measured:
    """The test images as the frozen encoder sees them, and the undefended classifier's figures on them."""

    encoded: EncodedImages
    before: dict[str, Any]


def purify(
    model: str | LoadedCLIP | CLIPModel,
    images: Images,
    test_images: Images | None = None,
    attacks: Sequence[str | Attack] = (),
    *,
    training: CBPTTrainingArguments | None = None,
    output_dir: str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    image_processor: CLIPImageProcessorPil | None = None,
    dry_run: bool = False,
    checkpoint: CheckpointArguments | None = None,
    **options: Any,
) -> Purified | Plan:
    """Purify a CLIP with a few clean images; all processes of a run call.

    Args:
        model: A folder, a Hub id, `pocket:NAME`, or a CLIP that is loaded, which gets the adapter put into it.
        images: Labelled images to take shots from: a `datasets.Dataset` with a `ClassLabel` column, or a name.
        test_images: What is measured on; see `data.shots.shots_and_test` for the default.
        attacks: Attacks to measure, or files that describe them. Tuning knows nothing of them.
        training: Settings of the tuning.
        output_dir: Where adapter, `results.json`, card, picture and checkpoints are written; nowhere by default.
        tokenizer: Of a loaded model, where it is not found under the model's name.
        image_processor: Likewise.
        dry_run: Open and check everything, tell what the run will cost, and stop; nothing is written.
        checkpoint: What a file of weights does not tell of itself, such as its activation and pixels.
        **options: The fields of `PurifyArguments`.

    Raises:
        InputError: if something given cannot be used; nothing has been written then.
    """
    arguments: PurifyArguments = PurifyArguments.of(options)
    with (
        TemporaryDirectory() if output_dir is None else nullcontext(str(output_dir)) as folder,
        alone_in(prepare_output(folder)) as output,
    ):
        training = copy.copy(training or CBPTTrainingArguments(output_dir=folder))
        training.output_dir = folder
        if output_dir is None:
            training.save_strategy = SaveStrategy.NO
        stopwatch = Stopwatch()
        set_seed(training.seed)
        with stopwatch("load"):
            clip = open_clip(model, tokenizer, image_processor, checkpoint)
            name = model if isinstance(model, str) else clip.model.name_or_path or ""
            base = name_of_base(name, arguments.base_model_id)
            push = plan_push(training, base)
            job = _load(clip, images, test_images, attacks, arguments, training, output)
        if dry_run:
            return plan_tuning(job.trainer, len(job.data.test), len(job.attacks))
        with stopwatch("measure before"):
            measured = _measure_before(job)
        with stopwatch("purify"):
            _tune(job, output)
        with stopwatch("measure after"):
            after = measure(measured.encoded, adapter_features(job.model, job.clip), job.attacks, job.data.class_names)
        given = {
            "model_name_or_path": name,
            "dataset_name": name_of_images(images),
            "test_dataset_name": None if test_images is None else name_of_images(test_images),
            "attacks": list(job.attacks),
            "checkpoint": (checkpoint or NOTHING_GIVEN).given() or None,
        }
        results = shareable(
            {
                **_record(job, given | vars(arguments)),
                "n_test_images": len(measured.encoded.labels),
                "skipped": {
                    "shots": [one.as_dict() for one in job.data.skipped],
                    "test": [one.as_dict() for one in measured.encoded.skipped],
                },
                "before": measured.before,
                "after": after,
                "seconds": stopwatch.seconds,
            }
        )
        if output_dir is None:
            return Purified(job.model, clip, results)
        if is_main := PartialState().is_main_process:
            _save(job, measured, results, base, output)
        commit = push(output) if push and is_main else None
        return Purified(job.model, clip, results, output, commit)


def _load(
    clip: LoadedCLIP,
    images: Images,
    test_images: Images | None,
    attacks: Sequence[str | Attack],
    arguments: PurifyArguments,
    training: CBPTTrainingArguments,
    output: Path,
) -> Job:
    fingerprint = weights_fingerprint(clip.model)
    data = shots_and_test(images, test_images, arguments, training.seed, clip.image_processor)
    read = read_attacks(attacks, data.class_names)
    if any(attack.all_to_all for attack in read.values()):
        raise InputError("an all-to-all attack has no one target to report on: measure it with evaluate")
    try:
        prompts = arguments.prompts(data.class_names, clip.tokenizer, training.solves_features)
        model = get_peft_model(clip.model, prompts.record_base(clip.model))
    except ValueError as error:
        raise InputError(str(error)) from error
    check_room(model, clip, read)
    try:
        vocabulary = make_vocabulary(clip, data.class_names, arguments.template)
        trainer = CBPTTrainer(model, training, data.shots, clip.normalize, vocabulary)
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        raise InputError(str(error)) from error
    checkpoint = find_checkpoint(
        training.resume_from_checkpoint, output, trainer.check_checkpoint, arguments.overwrite_output_dir
    )
    return Job(clip, model, data, read, trainer, checkpoint, fingerprint)


def _measure_before(job: Job) -> Measured:
    device = job.trainer.args.device
    job.model.to(device).eval()
    triggers = {name: attack.trigger for name, attack in job.attacks.items()}
    encoder = image_encoder(job.clip.model, job.clip.normalize)
    encoded = encode_images(encoder, job.data.test, triggers, device, EVALUATION_BATCH_SIZE)
    undefended = adapter_features(job.model, job.clip, adapter=False)
    return Measured(encoded, measure(encoded, undefended, job.attacks, job.data.class_names))


@contextmanager
def _unnamed(job: Job) -> Iterator[None]:
    """While the block runs, model and adapter know no name of the base, so that no path gets into what is saved."""
    model: Any = job.clip.model
    config: Any = job.model.active_peft_config
    names = model.name_or_path, config.base_model_name_or_path
    model.name_or_path = model.config._name_or_path = config.base_model_name_or_path = ""
    try:
        yield
    finally:
        model.name_or_path = model.config._name_or_path = names[0]
        config.base_model_name_or_path = names[1]


def _tune(job: Job, output: Path) -> None:
    """Train; a run that starts anew takes the place of its own earlier checkpoints."""
    if job.checkpoint is None and PartialState().is_main_process:
        for old in output.glob("checkpoint-*"):
            shutil.rmtree(old)
    with _unnamed(job):
        job.trainer.train(resume_from_checkpoint=job.checkpoint)


def _record(job: Job, given: Mapping[str, Any]) -> dict[str, Any]:
    """What results.json says of the job and its training; for the rest see docs/results-schema.md."""
    training: Any = job.trainer.args
    settings = {name: str(value) if value == math.inf else value for name, value in training.used().items()}
    prompts: Any = job.model.active_peft_config
    settings |= {name: getattr(prompts, name) for name in ("num_context_tokens", "context_init")}
    return {
        "schema_version": SCHEMA_VERSION,
        **made_now(),
        "model": given["model_name_or_path"],
        "base_fingerprint": {"before": job.fingerprint, "after": weights_fingerprint(job.clip.model)},
        "class_names": job.data.class_names,
        "attacks": {name: attack.as_dict() for name, attack in job.attacks.items()},
        "shots": list(job.data.shots.dataset["sample_id"]),
        "suspects": suspects_of(job.trainer.dummy_triggers, job.data.class_names),
        "epochs": [entry for entry in job.trainer.state.log_history if "loss_bn" in entry],
        "solution": None if job.trainer.solution is None else job.trainer.solution.as_dict(),
        "peak_memory_bytes": peak_memory_bytes(training.device),
        "settings": json.loads(json.dumps({**given, **settings}, default=str)),
        "seed": training.seed,
    }


def _save(job: Job, measured: Measured, results: dict[str, Any], base: str, output: Path) -> None:
    """Adapter (under a temporary name first, the weights last), triggers, results, picture and card."""
    from peft_cbpt.reports.before_after import PICTURE_FILE, draw_before_after

    for stale in (RESULTS_FILE, PICTURE_FILE, TRIGGERS_FILE):
        (output / stale).unlink(missing_ok=True)
    staging = output / STAGING_FOLDER
    with removed_afterwards(staging), _unnamed(job):
        job.model.save_pretrained(str(staging))
        config = CBPTConfig.from_pretrained(staging)
        config.base_model_name_or_path = base or None
        config.save_pretrained(str(staging))
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            os.replace(staging / name, output / name)
    if (dummies := job.trainer.dummy_triggers) is not None and dummies.triggers:
        save_triggers(
            output / TRIGGERS_FILE, {f"{label}/{one}": found for (label, one), found in dummies.triggers.items()}
        )
    write_json(output / RESULTS_FILE, results)
    images = job.data.test.without(measured.encoded.skipped)
    features = (adapter_features(job.model, job.clip, adapter=False), adapter_features(job.model, job.clip))
    draw_before_after(output / PICTURE_FILE, images, measured.encoded, results, *features)
    write_card(output, config, job.trainer.args.hub_model_id)
