"""The cells of experiments: computed with the recipes, and stored as each is finished."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.paper.experiments import POCKET_PREFIX, Cell
from benchmarks.paper.zoo import folder_of, is_made, zoo_job
from peft_cbpt.attacks.attack_file import read_attack
from peft_cbpt.commands.evaluate import CLEAN, EVALUATION_FILE, evaluate
from peft_cbpt.commands.finetune import FinetuneArguments, finetune
from peft_cbpt.commands.parsing import as_options, parse
from peft_cbpt.commands.poison import run_poison
from peft_cbpt.commands.purify import PurifyArguments, purify
from peft_cbpt.commands.results import Stopwatch
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import write_json
from peft_cbpt.common.versions import package_versions
from peft_cbpt.data.images import load_labelled_images
from peft_cbpt.hub.adapter_folder import RESULTS_FILE
from peft_cbpt.training.cbpt_arguments import CBPTTrainingArguments

TRIGGER_FOR = {"pocket:clean": "pocket:badnet"}
"""What a clean model is measured with."""
FIGURES = ("attack_success_rate", "attack_success_rate_published", "robust_accuracy")


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
        run_poison(job)
    return str(folder)


def compute_cell(cell: Cell, model: str, test_sets: Sequence[str], cache_dir: Path, folder: Path) -> None:
    """Defend the model as the cell says, measure it, and store the cell below `folder`."""
    stopwatch = Stopwatch()
    with TemporaryDirectory() as name:
        work = Path(name)
        with stopwatch("defend"):
            classifier, base, suspects = _defend(cell, model, cache_dir, work / "defended")
        with stopwatch("measure"):
            figures = _measure(cell, model, base, classifier, test_sets, work / "measured")
    stored = {
        "schema_version": 1,
        "cell": asdict(cell),
        "figures": figures,
        "suspects": suspects,
        "seconds": stopwatch.seconds,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": package_versions(),
    }
    (folder / cell.file).parent.mkdir(parents=True, exist_ok=True)
    write_json(folder / cell.file, stored)


def check_cell(cell: Cell) -> None:
    """See that a cell's options are known and its target is among the classes, before anything is run.

    Raises:
        InputError: if not.
    """
    nowhere = Path("checked")
    if cell.method == "cbpt":
        parse([PurifyArguments, CBPTTrainingArguments], purify_options(cell, "model", nowhere, nowhere), "")
    elif cell.method != "none":
        parse([FinetuneArguments], _finetune_options(cell, "model", nowhere), "")
    if cell.attack.startswith(POCKET_PREFIX):
        shipped = read_attack(TRIGGER_FOR.get(cell.attack, cell.attack)).target_class
        if shipped != cell.target_class:
            raise InputError(f"{cell.attack} aims at {shipped!r}, not at {cell.target_class!r}: leave that attack out")
    test = load_labelled_images(cell.data["dataset_name"], "test", num_classes=cell.data.get("num_classes"))
    if cell.target_class not in (names := test.features["label"].names):
        raise InputError(f"target_class is one of the {len(names)} classes measured, not {cell.target_class!r}")


def purify_options(cell: Cell, model: str, cache_dir: Path, output: Path) -> list[str]:
    """The options of `purify` that a cell stands for."""
    job = {"model_name_or_path": model, "feature_cache_dir": cache_dir, "output_dir": output, "seed": cell.seed}
    return as_options(cell.data | cell.settings | job | {"save_strategy": "no"})


def _defend(cell: Cell, model: str, cache_dir: Path, output: Path) -> tuple[str, str, list[dict] | None]:
    """The classifier and the CLIP to measure, and what purification suspected."""
    if cell.method == "none":
        return "template", model, None
    if cell.method == "cbpt":
        measured_later = ["--test_images_per_class", "1"]
        purify([*purify_options(cell, model, cache_dir, output), *measured_later])
        return str(output), model, json.loads((output / RESULTS_FILE).read_text())["suspects"]
    finetune(_finetune_options(cell, model, output))
    return "template", str(output), None


def _finetune_options(cell: Cell, model: str, output: Path) -> list[str]:
    job = {"model_name_or_path": model, "method": cell.method, "output_dir": output, "seed": cell.seed}
    return as_options(cell.settings | job)


def _measure(
    cell: Cell, model: str, base: str, classifier: str, test_sets: Sequence[str], output: Path
) -> dict[str, dict[str, float]]:
    """By test set: clean accuracy, both attack success rates, accuracy under the trigger; shares in [0, 1]."""
    data = {name: value for name, value in cell.data.items() if name not in ("dataset_name", "num_shots")}
    job = {"model_name_or_path": base, "classifiers": classifier, "datasets": list(test_sets)}
    job["attacks"] = TRIGGER_FOR.get(cell.attack, model)
    evaluate(as_options(data | job | {"output_dir": output}))
    figures: dict[str, dict[str, float]] = {name: {} for name in test_sets}
    for one in json.loads((output / EVALUATION_FILE).read_text())["cells"]:
        figures[one["dataset"]] |= _figures(one)
    return figures


def _figures(measured: Mapping[str, Any]) -> dict[str, float]:
    if measured["attack"] == CLEAN:
        return {"clean_accuracy": measured["accuracy"]}
    return {name: measured[name] for name in FIGURES}
