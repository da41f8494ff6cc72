"""Measure any classifiers on any datasets under any triggers."""

import copy
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerBase

from peft_cbpt.attacks.attack_file import Attack, read_attack, read_attacks
from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.clip.templates import PLAIN_TEMPLATE
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import prepare_output, write_json
from peft_cbpt.common.processes import join_processes
from peft_cbpt.common.records import Stopwatch, made_now, peak_memory_bytes
from peft_cbpt.convert.checkpoint_arguments import NOTHING_GIVEN, CheckpointArguments
from peft_cbpt.data.shots import Images, LabelledArguments, name_of_images
from peft_cbpt.data.skipping import Skipped
from peft_cbpt.data.unlabelled import UnlabelledImages
from peft_cbpt.evaluation.cells import cell_key, read_cells, write_cell
from peft_cbpt.evaluation.classifiers import ADAPTED, TEMPLATE, Classifier, open_classifiers, repairs_encoder
from peft_cbpt.evaluation.detect import class_label
from peft_cbpt.evaluation.detection import Detection
from peft_cbpt.evaluation.eval_sets import EvalSet, open_eval_set
from peft_cbpt.evaluation.luck import drives, warn_of_idle
from peft_cbpt.evaluation.measure import (
    attack_metrics,
    called_target,
    check_classes_read,
    clean_metrics,
    encode_versions,
    ranked_classes,
)
from peft_cbpt.evaluation.reading import warn_of_reading
from peft_cbpt.pocket.model import open_clip

EVALUATION_FILE = "evaluation.json"
CLEAN = "clean"


@dataclass(kw_only=True)
class EvaluationArguments(LabelledArguments):
    """How classifiers are measured."""

    template: str = field(default=PLAIN_TEMPLATE, metadata={"help": "Prompt of all but CBPT adapters."})
    streaming: bool = field(default=False, metadata={"help": "Read Hub and parquet datasets row by row."})
    batch_size: int = field(default=256, metadata={"help": "Images encoded at once."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read images, for each GPU."})
    detect: str | None = field(
        default=None,
        metadata={
            "help": "Clean images no adapter was tuned on: tell triggered images by them, and measure how well."
        },
    )
    detect_class: str | None = field(default=None, metadata={"help": "Class that a scan found, for --detect."})

    def __post_init__(self) -> None:
        if self.detect_class and not self.detect:
            raise InputError("detect_class has no effect without detect: name clean images with it")
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, it is {self.batch_size}")
        if self.num_workers < 0:
            raise InputError(f"num_workers must not be negative, it is {self.num_workers}")
        if self.template.count("{}") != 1:
            raise InputError(f"template must hold one {{}} for the class name, {self.template!r} does not")


@dataclass(frozen=True)
class Job:
    """One cell to be."""

    classifier: Classifier
    eval_set: EvalSet
    attack_name: str
    attack: Attack | None
    class_features: Tensor

    @property
    def names(self) -> dict[str, str]:
        """What it is called in this run; a stored cell may have had other names."""
        return {"classifier": self.classifier.name, "dataset": self.eval_set.name, "attack": self.attack_name}

    @property
    def key(self) -> str:
        """See `cells.cell_key`."""
        return cell_key(self.classifier, self.eval_set, self.attack)


def evaluate(
    model: str | LoadedCLIP | CLIPModel | PeftModel,
    images: Images | Sequence[Images],
    attacks: Sequence[str | Attack] = (),
    *,
    classifiers: Sequence[str] | None = None,
    output_dir: str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    image_processor: CLIPImageProcessorPil | None = None,
    checkpoint: CheckpointArguments | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measure classifiers on datasets, clean and under every trigger; each image is read once for all of them.

    Args:
        model: The CLIP: a folder, a Hub id, `pocket:NAME`, or one that is loaded; or a purified one with its adapter.
        images: One or several test sets; see `data.shots.Images` and, for `NAME@SPLIT`, `evaluation.eval_sets`.
        attacks: Attacks, or the files that describe them.
        classifiers: See `classifiers.open_classifiers`; by default the model's template prompts, or its adapter.
        output_dir: Where finished cells are kept, and looked up, and `evaluation.json` is written; nowhere by default.
        tokenizer: Of a loaded model, where it is not found under the model's name.
        image_processor: Likewise.
        checkpoint: What a file of weights does not tell of itself, such as its activation and pixels.
        **options: Splits, columns, classes, prompts and batches: the fields of `EvaluationArguments`.

    Returns:
        The content of `evaluation.json` (docs/results-schema.md): figures are in its `cells`. Processes but the first
        get no figures.

    Raises:
        InputError: if something cannot be opened, or does not go together.
    """
    arguments: EvaluationArguments = EvaluationArguments.of(options)
    several = [images] if isinstance(images, Images) else list(images)
    names = [name_of_images(one) for one in several]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"the dataset {twice[0]!r} is named twice: name every dataset once")
    adapted = model if isinstance(model, PeftModel) else None
    if adapted and set(classifiers or ()) - {TEMPLATE, ADAPTED}:
        raise InputError("other classifiers cannot be measured with a model that has an adapter: give its base")
    output = prepare_output(str(output_dir)) if output_dir is not None else None
    state, stopwatch = join_processes(), Stopwatch()
    with stopwatch("load"):
        given: Any = adapted.get_base_model() if adapted else model
        base = open_clip(given, tokenizer, image_processor, checkpoint)
        if adapted and repairs_encoder(adapted.active_peft_config):  # what is called the base must be undefended
            plain: Any = copy.deepcopy(adapted).unload()
            base = LoadedCLIP(plain, base.tokenizer, base.image_processor)
        chosen = list(classifiers or ([ADAPTED] if adapted else [TEMPLATE]))
        opened = open_classifiers(
            [adapted if adapted and one == ADAPTED else one for one in chosen],
            base,
            arguments.template,
            [read_attack(source).text_trigger for source in attacks],
        )
        opened.sort(key=lambda one: one.clip is not base)
        eval_sets = [open_eval_set(one, arguments, arguments.streaming, base.image_processor) for one in several]
        jobs, read = _jobs(opened, eval_sets, attacks)
        detection = _detection(opened, base, eval_sets, arguments) if arguments.detect else None
        cells = read_cells(output) if output else {}
        state.wait_for_everyone()  # every process has seen the same cells
    missing = [job for job in jobs if job.key not in cells]
    if missing and state.is_main_process and eval_sets[0].images is not None:
        with stopwatch("check the reading"):
            shots: Any = eval_sets[0].my_images(base.image_processor)
            base.model.to(state.device)
            warn_of_reading(base, shots, eval_sets[0].class_names, arguments.template)
            base.model.cpu()
    with stopwatch("evaluate"):
        for _, group in groupby(missing, lambda job: (job.eval_set.name, id(job.classifier.clip))):
            for key, figures in _run(list(group), arguments).items():
                cells[key] = write_cell(output, key, figures) if state.is_main_process else {}
    told: list[dict[str, Any]] = []
    if detection:
        with stopwatch("detect"):
            for eval_set in eval_sets:
                told += detection.measure(eval_set, read_attacks(attacks, eval_set.class_names))
    settings: dict[str, Any] = {"model_name_or_path": model if isinstance(model, str) else base.model.name_or_path}
    settings |= {"datasets": names, "classifiers": chosen, "attacks": list(read)}
    settings["checkpoint"] = (checkpoint or NOTHING_GIVEN).given() or None
    results = {
        "schema_version": 1,
        **made_now(),
        "model": settings["model_name_or_path"],
        "classifiers": {one.name: {"kind": one.kind, "fingerprint": one.fingerprint} for one in opened},
        "datasets": {one.name: {"class_names": one.class_names, "fingerprint": one.fingerprint} for one in eval_sets},
        "attacks": {name: attack.as_dict() for name, attack in read.items()},
        "cells": [cells[job.key] | job.names for job in jobs],
        "n_computed": len(missing),
        "detection": told,
        "seconds": stopwatch.seconds,
        "peak_memory_bytes": peak_memory_bytes(state.device),
        "settings": settings | asdict(arguments),
    }
    if state.is_main_process:
        warn_of_idle([cell for cell in results["cells"] if cell["attack"] != CLEAN])
    if output and state.is_main_process:
        write_json(output / EVALUATION_FILE, results)
    return results


def _detection(
    classifiers: Sequence[Classifier], base: LoadedCLIP, eval_sets: Sequence[EvalSet], arguments: EvaluationArguments
) -> Detection:
    """What triggered images are told with, checked before anything is measured."""
    purified = [one for one in classifiers if one.kind == "cbpt"]
    if not purified:
        raise InputError("detect compares CBPT adapters with the prompts they replace: name one among the classifiers")
    for eval_set in eval_sets:
        class_label(eval_set.class_names, arguments.detect_class)
    (undefended,) = open_classifiers([TEMPLATE], base, arguments.template)
    names, column = eval_sets[0].class_names, arguments.image_column
    clean = UnlabelledImages(arguments.detect or "", base.image_processor, image_column=column, class_names=names)
    return Detection(undefended, purified, clean, arguments.detect_class, arguments.batch_size, arguments.num_workers)


def _jobs(
    classifiers: Sequence[Classifier], eval_sets: Sequence[EvalSet], sources: Sequence[str | Attack]
) -> tuple[list[Job], dict[str, Attack]]:
    """All cells, those of one pass over images together, checked before anything is measured; the attacks by name."""
    jobs: list[Job] = []
    attacks: dict[str, Attack] = {}
    for eval_set in eval_sets:
        attacks = read_attacks(sources, eval_set.class_names)
        for classifier in classifiers:
            for name, attack in ((CLEAN, None), *attacks.items()):
                features = classifier.class_features(eval_set.class_names, attack)
                jobs.append(Job(classifier, eval_set, name, attack, features))
    return jobs, attacks


@torch.no_grad()
def _run(jobs: Sequence[Job], arguments: EvaluationArguments) -> dict[str, dict[str, Any]]:
    """One pass over the images of a test set with one image encoder: figures by key, in the first process."""
    clip, eval_set, state = jobs[0].classifier.clip, jobs[0].eval_set, join_processes()
    clip.model.to(state.device)
    # arrays that grow: tensors of a batch, kept among activations that come and go, would scatter the heap
    labels = array("q")
    ranked = [array("q") for _ in jobs]
    untriggered = [array("q") for _ in jobs]
    skipped: list[Skipped] = []
    batches = encode_versions(
        image_encoder(clip.model, clip.normalize),
        eval_set.my_images(clip.image_processor),
        {job.attack_name: job.attack.trigger for job in jobs if job.attack},
        state.device,
        arguments.batch_size,
        arguments.num_workers,
    )
    for batch, features, unread in batches:
        skipped += unread
        if batch is None:
            continue
        labels.extend(batch["labels"].tolist())
        for job, rankings, without in zip(jobs, ranked, untriggered, strict=True):
            version = features[job.attack_name if job.attack else ""]
            rankings.extend(ranked_classes(version, job.class_features).flatten().tolist())
            if job.attack:
                without.extend(ranked_classes(features[""], job.class_features)[:, 0].tolist())
    clip.model.cpu()
    shares = gather_object([(labels, ranked, untriggered, skipped)])
    if not state.is_main_process:
        return {job.key: {} for job in jobs}
    all_labels = _joined([share_labels for share_labels, *_ in shares])
    all_skipped = sorted((one for *_, share in shares for one in share), key=lambda one: one.sample_id)
    check_classes_read(all_labels.tolist(), all_skipped)
    if not len(all_labels):
        raise InputError(f"the dataset {eval_set.name} has no images of the classes kept")
    cells = {}
    for place, job in enumerate(jobs):
        all_ranked = _joined([share_ranked[place] for _, share_ranked, _, _ in shares])
        without_trigger = _joined([share_untriggered[place] for _, _, share_untriggered, _ in shares])
        cells[job.key] = _figures(job, all_ranked.view(len(all_labels), -1), without_trigger[:, None], all_labels)
        cells[job.key]["skipped"] = [one.as_dict() for one in all_skipped]
    return cells


def _joined(shares: Sequence[array]) -> Tensor:
    """The numbers (n,) of all processes."""
    return torch.from_numpy(np.concatenate([np.asarray(share) for share in shares]))


def _figures(job: Job, rankings: Tensor, untriggered: Tensor, labels: Tensor) -> dict[str, Any]:
    names = job.eval_set.class_names
    if job.attack is None:
        figures = clean_metrics(rankings, labels)
    else:
        target = job.attack.target_labels(labels, names)
        without = called_target(untriggered, labels, target)
        figures = attack_metrics(rankings, labels, target)
        figures["untriggered_rate"] = without.double().mean().item()
        figures["drives"] = drives(called_target(rankings, labels, target), without)
    figures["per_class"] = {names[int(label)]: value for label, value in figures["per_class"].items()}
    return {**job.names, **figures}
