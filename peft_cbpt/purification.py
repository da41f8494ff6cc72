"""Purify a suspicious CLIP: measure it, repair its encoder, tune class-wise prompts on it, measure again, save."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate import PartialState
from huggingface_hub import CommitInfo
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import SaveStrategy

from peft_cbpt.attacks.attack_file import Attack, read_attacks
from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import alone_in, prepare_output
from peft_cbpt.common.records import Stopwatch
from peft_cbpt.convert.checkpoint_arguments import NOTHING_GIVEN, CheckpointArguments
from peft_cbpt.data.shots import Images, ShotsAndTest, name_of_images, shots_and_test
from peft_cbpt.detection.suspects import Suspicion
from peft_cbpt.evaluation.classifiers import adapter_features, check_room
from peft_cbpt.evaluation.measure import EncodedImages, encode_images, measure
from peft_cbpt.evaluation.vocabulary import make_vocabulary
from peft_cbpt.features.plan import Plan, together
from peft_cbpt.hub.push import name_of_base, plan_push
from peft_cbpt.hub.sharing import shareable
from peft_cbpt.pocket.model import open_clip
from peft_cbpt.purified import Made, record, save_purified
from peft_cbpt.scanning import look_for_suspects
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.cbpt_trainer import CBPTTrainer
from peft_cbpt.training.checkpoints import find_checkpoint
from peft_cbpt.training.encoder_arguments import EncoderPurifierArguments
from peft_cbpt.training.encoder_stage import EncoderStage, encoder_job, used_settings
from peft_cbpt.training.encoder_trainer import EncoderPurifier
from peft_cbpt.training.plan import plan_encoder, plan_tuning
from peft_cbpt.training.prompt_stage import tune, tune_on, unnamed
from peft_cbpt.training.purify_arguments import ENCODER, PROMPTS, PurifyArguments
from peft_cbpt.training.samples import checked_samples
from peft_cbpt.tuner.encoder import FOLDER
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
    """All that a run needs, opened and checked.

    Args:
        clip: The CLIP, which `model` has in it.
        model: With prompts that are not tuned yet.
        data: Shots and test images.
        attacks: What is measured.
        only: What is made, if not both; see `PurifyArguments.made`.
        trainer: Of the prompts, on the encoder as it is; None where none are made.
        stage: Of the encoder; None where it stays as it is.
        encoder: Its settings.
        checkpoint: To go on from, where only prompts are made.
        fingerprint: Of the base.
        undefended: Features of the template prompts after a text trigger.
    """

    clip: LoadedCLIP
    model: PeftModel
    data: ShotsAndTest
    attacks: Mapping[str, Attack]
    only: str | None
    trainer: CBPTTrainer | None
    stage: EncoderStage | None
    encoder: EncoderPurifierArguments | None
    checkpoint: str | None
    fingerprint: str
    undefended: Callable[[str], Tensor]


def purify(
    model: str | LoadedCLIP | CLIPModel,
    images: Images,
    test_images: Images | None = None,
    attacks: Sequence[str | Attack] = (),
    *,
    training: CBPTTrainingArguments | None = None,
    encoder: EncoderPurifierArguments | None = None,
    output_dir: str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    image_processor: CLIPImageProcessorPil | None = None,
    dry_run: bool = False,
    checkpoint: CheckpointArguments | None = None,
    **options: Any,
) -> Purified | Plan:
    """Purify a CLIP with a few clean images; all processes of a run call.

    By default the image encoder is repaired first, from the images without their labels, and then class-wise prompts
    are tuned on it. The option `only` makes one of the two.

    Args:
        model: A folder, a Hub id, `pocket:NAME`, or a CLIP that is loaded, which gets the adapter put into it.
        images: Labelled images to take shots from: a `datasets.Dataset` with a `ClassLabel` column, or a name.
        test_images: What is measured on; see `data.shots.shots_and_test` for the default.
        attacks: Attacks to measure, or files that describe them. Tuning knows nothing of them.
        training: Settings of the tuning of prompts; seed, device and the like hold for the encoder, too.
        encoder: Settings of the encoder's training, where the `encoder_` options are not enough.
        output_dir: Where adapter, `results.json`, card, picture and checkpoints are written; nowhere by default.
        tokenizer: Of a loaded model, where it is not found under the model's name.
        image_processor: Likewise.
        dry_run: Open and check everything, tell what the run will cost, and stop; nothing is written.
        checkpoint: What a file of weights does not tell of itself, such as its activation and pixels.
        **options: The fields of `PurifyArguments`, such as `only="prompts"`.

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
            only = arguments.made(training, encoder)
            clip = open_clip(model, tokenizer, image_processor, checkpoint)
            name = model if isinstance(model, str) else clip.model.name_or_path or ""
            base = name_of_base(name, arguments.base_model_id)
            push = plan_push(training, base)
            job = _load(clip, images, test_images, attacks, arguments, training, encoder, only, output)
        if dry_run:
            return _plan(job)
        made = _make(job, training, base, output, stopwatch)
        given = {
            "model_name_or_path": name,
            "dataset_name": name_of_images(images),
            "test_dataset_name": None if test_images is None else name_of_images(test_images),
            "attacks": list(job.attacks),
            "checkpoint": (checkpoint or NOTHING_GIVEN).given() or None,
            **vars(arguments),
            "only": only,
            "encoder": used_settings(job.encoder) if job.encoder else None,
        }
        results = shareable(
            {
                **record(job.data, job.attacks, made, training, given),
                "base_fingerprint": {"before": job.fingerprint, "after": weights_fingerprint(clip.model)},
                "encoder_epochs": job.stage.epochs if job.stage else [],
                "seconds": stopwatch.seconds,
            }
        )
        if output_dir is None:
            return Purified(made.model, clip, results)
        if is_main := PartialState().is_main_process:
            with unnamed(clip, made.model):
                save_purified(job.data, made, results, base, output, training.hub_model_id)
        commit = push(output) if push and is_main else None
        return Purified(made.model, clip, results, output, commit)


def _load(
    clip: LoadedCLIP,
    images: Images,
    test_images: Images | None,
    attacks: Sequence[str | Attack],
    arguments: PurifyArguments,
    training: CBPTTrainingArguments,
    encoder: EncoderPurifierArguments | None,
    only: str | None,
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
    trainer = stage = stage_arguments = checkpoint = None
    resume, overwrite = training.resume_from_checkpoint, arguments.overwrite_output_dir
    try:
        if only != ENCODER:
            vocabulary = make_vocabulary(clip, data.class_names, arguments.template)
            trainer = CBPTTrainer(model, training, data.shots, clip.normalize, vocabulary)
        if only != PROMPTS:
            if (resume or "false").lower() not in ("true", "false"):
                raise InputError(
                    "resume_from_checkpoint is true or false where the encoder is repaired: each stage goes on from "
                    f"its own last checkpoint in output_dir, and {resume} would be that of one of them"
                )
            stage_arguments = arguments.encoder_arguments(training, output / FOLDER, encoder)
            stage_job = encoder_job(fingerprint, checked_samples(data.shots, data.class_names).digest, stage_arguments)
            stage = EncoderStage(output / FOLDER, stage_job, (resume or "false").lower() != "false", overwrite)
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        raise InputError(str(error)) from error
    if trainer is not None and stage is None:
        checkpoint = find_checkpoint(resume, output, trainer.check_checkpoint, overwrite)
    undefended = adapter_features(model, clip, adapter=False)
    return Job(clip, model, data, read, only, trainer, stage, stage_arguments, checkpoint, fingerprint, undefended)


def _plan(job: Job) -> Plan:
    n_images, n_attacks = len(job.data.test), len(job.attacks)
    plans = [] if job.trainer is None else [plan_tuning(job.trainer, n_images, n_attacks)]
    if job.encoder is not None and job.stage is not None:
        base: Any = job.model.unload()
        encoder = EncoderPurifier(base, job.encoder, job.data.shots, job.clip.normalize)
        plans.append(plan_encoder(encoder))
        adapted: Any = encoder.model
        adapted.unload()
        with suppress(OSError):  # the trainer has made it
            job.stage.folder.rmdir()
    return together(plans)


def _encode(job: Job) -> EncodedImages:
    """The test images, by the encoder as it is now."""
    clip, device = job.clip, PartialState().device
    clip.model.to(device).eval()
    triggers = {name: attack.trigger for name, attack in job.attacks.items()}
    encoder = image_encoder(clip.model, clip.normalize)
    return encode_images(encoder, job.data.test, triggers, device, EVALUATION_BATCH_SIZE)


def _make(job: Job, training: CBPTTrainingArguments, base: str, output: Path, stopwatch: Stopwatch) -> Made:
    """Measure, purify, measure again."""

    def measured(images: EncodedImages, head: Callable[[str], Tensor]) -> dict[str, Any]:
        return measure(images, head, job.attacks, job.data.class_names)

    with stopwatch("measure before"):
        seen = _encode(job)
        before = measured(seen, job.undefended)
    if job.stage is None:
        assert job.trainer is not None
        with stopwatch("purify"):
            tune(job.trainer, job.clip, job.checkpoint, output)
        with stopwatch("measure after"):
            head = adapter_features(job.model, job.clip)
            after = measured(seen, head)
        return Made(job.model, seen, seen, job.undefended, head, before, None, after, job.trainer)
    assert job.encoder is not None
    prompts: Any = job.model.active_peft_config
    suspicion, searches = Suspicion([], []), None
    with stopwatch("scan"):
        if job.trainer is not None:
            suspicion, searches = job.trainer.look_for_suspects()
        job.model.unload()
        if job.trainer is None and not job.stage.finished:
            names = job.data.class_names
            suspicion, searches = look_for_suspects(job.clip, job.data.shots, names, training.seed)
    with stopwatch("encoder"):
        with unnamed(job.clip):
            suspected = suspicion.directions
            purified = job.stage.run(job.clip, job.data.shots, job.encoder, base, searches, suspected)
    with stopwatch("measure encoder"):
        repaired = _encode(job)
        alone = measured(repaired, job.undefended)
    if job.trainer is None:
        return Made(purified, seen, repaired, job.undefended, job.undefended, before, alone, alone, None)
    with stopwatch("purify"):
        template = job.undefended("")
        model, trainer, kept = tune_on(purified, prompts, job.trainer, job.clip, template, training, suspicion, output)
    with stopwatch("measure after"):
        head = adapter_features(model, job.clip)
        after = measured(repaired, head)
    return Made(model, seen, repaired, job.undefended, head, before, alone, after, trainer, kept)
