"""Measure any classifiers on any datasets under any triggers, and print one table."""

from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from peft_cbpt.attacks.attack_file import Attack, read_attack, read_attacks
from peft_cbpt.clip.loading import load_clip
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.clip.templates import PLAIN_TEMPLATE
from peft_cbpt.commands.parsing import parse
from peft_cbpt.commands.results import Stopwatch, peak_memory_bytes, print_skipped
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import prepare_output, write_json
from peft_cbpt.common.processes import join_processes
from peft_cbpt.common.versions import package_versions
from peft_cbpt.data.skipping import Skipped
from peft_cbpt.evaluation.cells import cell_key, read_cells, write_cell
from peft_cbpt.evaluation.classifiers import TEMPLATE, Classifier, open_classifiers
from peft_cbpt.evaluation.eval_sets import EvalSet, open_eval_set
from peft_cbpt.evaluation.measure import (
    attack_metrics,
    check_classes_read,
    clean_metrics,
    encode_versions,
    ranked_classes,
)
from peft_cbpt.pocket.model import resolve_model

EVALUATION_FILE = "evaluation.json"
CLEAN = "clean"


@dataclass
class EvaluateArguments:
    """What to measure, on what."""

    model_name_or_path: str = field(metadata={"help": "The CLIP: a folder, a Hub id or pocket:NAME."})
    datasets: list[str] = field(
        metadata={"help": "Test sets, NAME or NAME@SPLIT: pocket:DOMAIN, imagenet-v2, a folder, a Hub id ..."}
    )
    output_dir: str = field(metadata={"help": "Folder for evaluation.json and the cells it is made of."})
    classifiers: list[str] = field(
        default_factory=lambda: [TEMPLATE],
        metadata={"help": "template, and folders or Hub ids of CBPT adapters, other PEFT adapters and whole CLIPs."},
    )
    attacks: list[str] = field(
        default_factory=list,
        metadata={"help": "Attacks to measure: attack.json files, folders with one, or pocket:NAME."},
    )
    test_split: str = field(default="test", metadata={"help": "Split of datasets that are given without one."})
    image_column: str = field(default="image", metadata={"help": "Column of images."})
    label_column: str = field(default="label", metadata={"help": "Column of labels."})
    class_names_file: str | None = field(default=None, metadata={"help": "Names of classes whose labels are numbers."})
    class_names: list[str] | None = field(default=None, metadata={"help": "Classes to keep, in label order."})
    num_classes: int | None = field(default=None, metadata={"help": "Keep the first so many classes."})
    test_images_per_class: int = field(default=20, metadata={"help": "Images per class the pocket world draws."})
    template: str = field(default=PLAIN_TEMPLATE, metadata={"help": "Prompt of all but CBPT adapters."})
    streaming: bool = field(default=False, metadata={"help": "Read Hub and parquet datasets row by row."})
    batch_size: int = field(default=256, metadata={"help": "Images encoded at once."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read images, for each GPU."})

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, it is {self.batch_size}")
        if self.num_workers < 0:
            raise InputError(f"num_workers must not be negative, it is {self.num_workers}")
        if self.template.count("{}") != 1:
            raise InputError(f"template must hold one {{}} for the class name, {self.template!r} does not")
        if twice := [name for name in self.datasets if self.datasets.count(name) > 1]:
            raise InputError(f"the dataset {twice[0]!r} is named twice: name every dataset once")


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


def evaluate(argv: Sequence[str]) -> None:
    """Run the evaluation; see `recipes/evaluate_classifiers.py`."""
    (arguments,) = parse([EvaluateArguments], argv, __doc__ or "")
    output = prepare_output(arguments.output_dir)
    state, stopwatch = join_processes(), Stopwatch()
    with stopwatch("load"):
        jobs, classifiers, eval_sets, attacks = _plan(arguments)
        cells = read_cells(output)
        state.wait_for_everyone()  # every process has seen the same cells
    with stopwatch("evaluate"):
        missing = [job for job in jobs if job.key not in cells]
        for _, group in groupby(missing, lambda job: (job.eval_set.name, id(job.classifier.clip))):
            cells |= _run(list(group), arguments, output, state)
    if not state.is_main_process:
        return
    results = {
        "schema_version": 1,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": arguments.model_name_or_path,
        "classifiers": {one.name: {"kind": one.kind, "fingerprint": one.fingerprint} for one in classifiers},
        "datasets": {one.name: {"class_names": one.class_names, "fingerprint": one.fingerprint} for one in eval_sets},
        "attacks": {name: attack.as_dict() for name, attack in attacks.items()},
        "cells": [cells[job.key] | job.names for job in jobs],
        "n_computed": len(missing),
        "seconds": stopwatch.seconds,
        "peak_memory_bytes": peak_memory_bytes(state.device),
        "settings": asdict(arguments),
        "versions": package_versions(),
    }
    write_json(output / EVALUATION_FILE, results)
    _print(results, output)


def _plan(arguments: EvaluateArguments) -> tuple[list[Job], list[Classifier], list[EvalSet], dict[str, Attack]]:
    """All cells, ordered so that those of one pass over images stand together; checked before anything is measured."""
    base = load_clip(resolve_model(arguments.model_name_or_path))
    text_triggers = [read_attack(source).text_trigger for source in arguments.attacks]
    classifiers = open_classifiers(arguments.classifiers, base, arguments.template, text_triggers)
    classifiers.sort(key=lambda one: one.clip is not base)
    eval_sets = [_open_eval_set(name, arguments, base.image_processor) for name in arguments.datasets]
    jobs: list[Job] = []
    attacks: dict[str, Attack] = {}
    for eval_set in eval_sets:
        attacks = read_attacks(arguments.attacks, eval_set.class_names)
        for classifier in classifiers:
            for name, attack in ((CLEAN, None), *attacks.items()):
                features = classifier.class_features(eval_set.class_names, attack)
                jobs.append(Job(classifier, eval_set, name, attack, features))
    return jobs, classifiers, eval_sets, attacks


def _open_eval_set(name: str, arguments: EvaluateArguments, image_processor: Any) -> EvalSet:
    return open_eval_set(
        name,
        arguments.test_split,
        arguments.streaming,
        image_processor,
        arguments.test_images_per_class,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
        class_names_file=arguments.class_names_file,
        class_names=arguments.class_names,
        num_classes=arguments.num_classes,
    )


@torch.no_grad()
def _run(
    jobs: Sequence[Job], arguments: EvaluateArguments, output: Path, state: PartialState
) -> dict[str, dict[str, Any]]:
    """One pass over the images of a test set with one image encoder; stores and returns the cells that come of it."""
    clip, eval_set = jobs[0].classifier.clip, jobs[0].eval_set
    clip.model.to(state.device)
    # arrays that grow: tensors of a batch, kept among activations that come and go, would scatter the heap
    labels = array("q")
    ranked = [array("q") for _ in jobs]
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
        for job, rankings in zip(jobs, ranked, strict=True):
            version = features[job.attack_name if job.attack else ""]
            rankings.extend(ranked_classes(version, job.class_features).flatten().tolist())
    clip.model.cpu()
    shares = gather_object([(labels, ranked, skipped)])
    if not state.is_main_process:
        return {job.key: {} for job in jobs}
    all_labels = _joined([share_labels for share_labels, _, _ in shares])
    all_skipped = sorted((one for _, _, share in shares for one in share), key=lambda one: one.sample_id)
    check_classes_read(all_labels.tolist(), all_skipped)
    if not len(all_labels):
        raise InputError(f"the dataset {eval_set.name} has no images of the classes kept")
    cells = {}
    for place, job in enumerate(jobs):
        all_ranked = _joined([share_ranked[place] for _, share_ranked, _ in shares])
        figures = _figures(job, all_ranked.view(len(all_labels), -1), all_labels)
        figures["skipped"] = [one.as_dict() for one in all_skipped]
        cells[job.key] = write_cell(output, job.key, figures)
    return cells


def _joined(shares: Sequence[array]) -> Tensor:
    """The numbers (n,) of all processes."""
    return torch.from_numpy(np.concatenate([np.asarray(share) for share in shares]))


def _figures(job: Job, rankings: Tensor, labels: Tensor) -> dict[str, Any]:
    names = job.eval_set.class_names
    if job.attack is None:
        figures = clean_metrics(rankings, labels)
    else:
        figures = attack_metrics(rankings, labels, names.index(job.attack.target_class))
    figures["per_class"] = {names[int(label)]: value for label, value in figures["per_class"].items()}
    return {**job.names, **figures}


def _print(results: dict[str, Any], output: Path) -> None:
    """One table: a line for every classifier on every dataset, and one for each attack below it."""
    header = ("dataset", "classifier", "images", "top-1", "top-5", "ASR", "ASR (published)", "top-1, trigger")
    lines: list[tuple[str, ...]] = [header]
    for cell in results["cells"]:
        figures = [
            cell.get(name)
            for name in (
                "accuracy",
                "top5_accuracy",
                "attack_success_rate",
                "attack_success_rate_published",
                "robust_accuracy",
            )
        ]
        name = cell["classifier"] if cell["attack"] == CLEAN else f"{cell['classifier']} / {cell['attack']}"
        shares = ["" if value is None else f"{100 * value:.2f}" for value in figures]
        lines.append((cell["dataset"], name, str(cell["n_images"]), *shares))
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        left = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        print("  ".join(left + right).rstrip())
    seen = {cell["dataset"]: cell["skipped"] for cell in results["cells"]}
    for name, skipped in seen.items():
        print_skipped(name, skipped)
    print(f"\n{results['n_computed']} of {len(results['cells'])} cells computed; figures: {output / EVALUATION_FILE}")
