"""Cells of an evaluation: one figure set for a classifier, a test set and an attack, stored as it is finished."""

import hashlib
import json
from pathlib import Path
from typing import Any

from peft_cbpt.attacks.attack_file import Attack
from peft_cbpt.common.files import write_json
from peft_cbpt.common.records import made_now
from peft_cbpt.evaluation.classifiers import Classifier
from peft_cbpt.evaluation.eval_sets import EvalSet

CELLS_FOLDER = "cells"
_FORM = 1  # of the content; raise it when cells mean something else


def cell_key(classifier: Classifier, eval_set: EvalSet, attack: Attack | None) -> str:
    """Hash of everything a cell's figures depend on, but for the versions of libraries."""
    parts = [_FORM, classifier.fingerprint, eval_set.fingerprint, attack.as_dict() if attack else None]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_cells(output: Path) -> dict[str, dict[str, Any]]:
    """The whole cells in an output folder by key; damaged ones do not count."""
    cells = {}
    for file in sorted((output / CELLS_FOLDER).glob("*.json")):
        try:
            cell = json.loads(file.read_text(encoding="utf-8"))
            cells[cell["key"]] = cell
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return cells


def write_cell(output: Path | None, key: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Store a cell, where there is a folder, and return it."""
    made = made_now()
    cell = {"key": key, "date": made["date"], "commit": made["commit"], **figures}
    if output:
        (output / CELLS_FOLDER).mkdir(exist_ok=True)
        write_json(output / CELLS_FOLDER / f"{key[:32]}.json", cell)
    return cell
