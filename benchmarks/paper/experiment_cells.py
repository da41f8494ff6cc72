"""The cells of experiments: computed with the package's functions, and stored as each is finished."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.paper.experiments import POCKET_PREFIX, Cell
from benchmarks.paper.zoo import folder_of, is_made, zoo_job
from peft_cbpt import __version__
from peft_cbpt.attacks.attack_file import read_attack
from peft_cbpt.commands.parsing import fill
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import write_json
from peft_cbpt.common.records import Stopwatch, made_now
from peft_cbpt.data.images import load_labelled_images
from peft_cbpt.evaluation.evaluate import CLEAN, EvaluationArguments, evaluate
from peft_cbpt.evaluation.measure import ATTACK_FIGURES
from peft_cbpt.purification import Purified, purify
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments
from peft_cbpt.training.finetune import FinetuneArguments, finetune
from peft_cbpt.training.poison import poison
from peft_cbpt.training.purify_arguments import PurifyArguments

TRIGGER_FOR = {"pocket:clean": "pocket:badnet"}
"""What a clean model is measured with."""


def read_cell(folder: Path, cell: Cell, test_sets: Sequence[str]) -> dict[str, Any] | None:
    """What is stored of a cell; None if it is not there, is damaged, or was not measured on all of the test sets."""
    try:
        stored = json.loads((folder / cell.file).read_text(encoding="utf-8"))
        return stored if set(test_sets) <= set(stored["figures"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def model_of(cell: Cell, models: Path, poison_configs: Path) -> str:
    """The poisoned model of a cell, which is made now if it is missing."""
    if cell.attack.startswith(POCKET_PREFIX):
        return cell.attack
    folder = folder_of(models, cell.attack, cell.target_class, cell.seed)
    job = zoo_job(poison_configs, folder, cell.attack, cell.target_class, cell.seed)
    if not is_made(job):
        print(f"making {folder}", flush=True)
        poison(job)
    return str(folder)


def is_older(stored: Mapping[str, Any]) -> bool:
    """Whether a stored cell was made by other code than the one that speaks of it, as far as it says."""
    return stored.get("commit") is None or stored.get("versions", {}).get("peft_cbpt") != __version__


def compute_cell(cell: Cell, model: str, test_sets: Sequence[str], cache_dir: Path, folder: Path) -> None:
    """Defend the model as the cell says, measure it, and store the cell below `folder`."""
    stopwatch, suspects = Stopwatch(), None
    defended: Any = model
    with TemporaryDirectory() as work:
        with stopwatch("defend"):
            if cell.method == "cbpt":
                purified = purify_cell(cell, model, cache_dir, test_images_per_class=1)
                defended, suspects = purified.model, purified.results["suspects"]
            elif cell.method != "none":
                finetune(_finetune_job(cell, model, work))
                defended = work
        with stopwatch("measure"):
            figures = _measure(cell, model, defended, test_sets)
    stored = {
        "schema_version": 1,
        **made_now(),
        "cell": asdict(cell),
        "figures": figures,
        "suspects": suspects,
        "seconds": stopwatch.seconds,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    (folder / cell.file).parent.mkdir(parents=True, exist_ok=True)
    write_json(folder / cell.file, stored)


def check_cell(cell: Cell) -> None:
    """See that a cell's options are known and its target is among the classes, before anything is run.

    Raises:
        InputError: if not.
    """
    if cell.method == "cbpt":
        _purify_job(cell, Path("checked"))
    elif cell.method != "none":
        _finetune_job(cell, "model", "checked")
    if cell.attack.startswith(POCKET_PREFIX):
        shipped = read_attack(TRIGGER_FOR.get(cell.attack, cell.attack)).target_class
        if shipped != cell.target_class:
            raise InputError(f"{cell.attack} aims at {shipped!r}, not at {cell.target_class!r}: leave that attack out")
    test = load_labelled_images(cell.data["dataset_name"], "test", num_classes=cell.data.get("num_classes"))
    if cell.target_class not in (names := test.features["label"].names):
        raise InputError(f"target_class is one of the {len(names)} classes measured, not {cell.target_class!r}")


def purify_cell(cell: Cell, model: str, cache_dir: Path, **changes: Any) -> Purified:
    """Purify the model as a cell says; `changes` are other arguments of `purify`."""
    arguments, training = _purify_job(cell, cache_dir)
    return purify(model, cell.data["dataset_name"], training=training, **vars(arguments) | changes)


def _purify_job(cell: Cell, cache_dir: Path) -> tuple[PurifyArguments, CBPTTrainingArguments]:
    usual = {"only": "prompts"}
    if cell.settings.get("unified_context"):
        usual["outer_solver"] = "prompts"  # one context cannot have the solved features of every class
    settings = usual | cell.data | cell.settings | {"feature_cache_dir": str(cache_dir), "seed": cell.seed}
    of_data = {one.name for one in fields(PurifyArguments)} & set(settings)
    of_training = set(settings) - of_data - {"dataset_name"}
    source = f"a cell of {cell.model}"
    return (
        fill(PurifyArguments, {name: settings[name] for name in of_data}, source),
        fill(CBPTTrainingArguments, {name: settings[name] for name in sorted(of_training)}, source),
    )


def _finetune_job(cell: Cell, model: str, output: str) -> FinetuneArguments:
    job = {"model_name_or_path": model, "method": cell.method, "output_dir": output, "seed": cell.seed}
    return fill(FinetuneArguments, cell.settings | job, f"a cell of {cell.model}")


def _measure(cell: Cell, model: str, defended: Any, test_sets: Sequence[str]) -> dict[str, dict[str, float]]:
    """By test set: clean accuracy, both attack success rates, accuracy under the trigger; shares in [0, 1]."""
    data = {name: value for name, value in cell.data.items() if name not in ("dataset_name", "num_shots")}
    arguments = fill(EvaluationArguments, data, f"the data of a cell of {cell.model}")
    measured = evaluate(defended, list(test_sets), [TRIGGER_FOR.get(cell.attack, model)], **vars(arguments))
    figures: dict[str, dict[str, float]] = {name: {} for name in test_sets}
    for one in measured["cells"]:
        names = {"clean_accuracy": "accuracy"} if one["attack"] == CLEAN else {name: name for name in ATTACK_FIGURES}
        figures[one["dataset"]] |= {name: one[theirs] for name, theirs in names.items()}
    return figures
