"""Experiments as data: the YAML files that say which cells a table or figure is made of."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from benchmarks.paper.zoo import model_name
from peft_cbpt.attacks import TRIGGERS
from peft_cbpt.commands.parsing import read_yaml
from peft_cbpt.common.errors import InputError

POCKET_PREFIX = "pocket:"
METHODS = ("none", "cbpt", "ft", "cleanclip")
PICTURES = ("bars", "lines", "domains", "report")
_FORM = 1  # of a cell's content; raise it when cells mean something else


@dataclass(frozen=True)
class Cell:
    """One classifier: an attack's model, and what was done to it.

    Args:
        attack: One of the seven, or `pocket:NAME` for a model that the package ships.
        target_class: The attack's target.
        seed: Seed of the poisoned model, of the shots and of the training.
        poison: The settings that the poisoned model is made with; empty for a shipped one.
        method: none, cbpt, ft or cleanclip.
        settings: Options of that method's recipe.
        data: Options of the data that it is tuned and measured on.
    """

    attack: str
    target_class: str
    seed: int
    poison: dict[str, Any]
    method: str
    settings: dict[str, Any]
    data: dict[str, Any]

    @property
    def model(self) -> str:
        """Name of the poisoned model."""
        return model_name(self.attack, self.target_class, self.seed)

    @property
    def key(self) -> str:
        """Hash of all that was asked for.

        It knows nothing of this package's defaults and of the versions of libraries: when a change of either touches
        cells, remove them, so that they are run again.
        """
        return hashlib.sha256(json.dumps([_FORM, asdict(self)], sort_keys=True).encode()).hexdigest()

    @property
    def file(self) -> str:
        """Where the cell is stored, relative to the folder of all cells."""
        return f"{self.model}/{self.method}-{self.key[:12]}.json"


@dataclass(frozen=True)
class Experiment:
    """A table or a figure of the paper, or an ablation.

    Args:
        name: Name of its YAML file.
        title: What it shows.
        rows: By label the method and its options, `{method: cbpt, num_shots: 4}`.
        attacks: The columns: attacks, each against models of every seed; `sig/corn` has a target of its own.
        seeds: Over which means and standard deviations are taken.
        data: Options of the data, the same for all rows.
        test_sets: The datasets to measure on; the first is the table's.
        about: A paragraph to go with it.
        picture: How it is drawn: bars, lines (row labels are numbers), domains (one group for each test set), or
            report (Grad-CAM and the map of embeddings of its last row); None for a table only.
        paper: The paper's figures, by row a pair [CA, ASR] for each attack.
        quick: What to replace of the above to see it in small.
    """

    name: str
    title: str
    rows: dict[str, dict[str, Any]]
    attacks: list[str]
    seeds: list[int]
    data: dict[str, Any]
    test_sets: list[str] = field(default_factory=lambda: ["pocket:base"])
    about: str = ""
    picture: str | None = None
    paper: dict[str, list[list[float]]] = field(default_factory=dict)
    quick: dict[str, Any] = field(default_factory=dict)

    def cell(self, row: str, attack: str, seed: int, target_class: str, poison: dict[str, Any]) -> Cell:
        """One cell of the table."""
        settings = dict(self.rows[row])
        return Cell(attack, target_class, seed, poison, settings.pop("method"), settings, self.data)


def attack_and_target(column: str, target_class: str) -> tuple[str, str]:
    """The attack of a column, and its target: the column's own, else the one given."""
    attack, _, own = column.partition("/")
    return attack, own or target_class


def read_experiment(file: Path, quick: bool) -> Experiment:
    """An experiment from its YAML file, in full or in small.

    Raises:
        InputError: if there is none, or if it says something that is not known.
    """
    settings = read_yaml(str(file))
    known = {one.name for one in fields(Experiment)} - {"name"}
    if unknown := sorted((set(settings) | set(settings.get("quick", {}))) - known):
        raise InputError(f"unknown setting {unknown[0]!r} in {file}")
    if missing := sorted({"title", "rows", "attacks", "seeds", "data"} - set(settings)):
        raise InputError(f"{file} lacks {missing[0]!r}")
    if quick:
        settings |= settings.get("quick", {})
    settings["rows"] = {str(label): row for label, row in settings["rows"].items()}
    settings["paper"] = {str(label): row for label, row in settings.get("paper", {}).items()}
    experiment = Experiment(file.stem, **settings)
    for label, row in experiment.rows.items():
        if row.get("method") not in METHODS:
            raise InputError(f"method of row {label!r} in {file} is one of {', '.join(METHODS)}")
    for attack, _ in (attack_and_target(column, "") for column in experiment.attacks):
        if attack not in TRIGGERS and not attack.startswith(POCKET_PREFIX):
            raise InputError(f"unknown attack {attack!r} in {file}; choose among {', '.join(TRIGGERS)}")
    if experiment.picture not in (None, *PICTURES):
        raise InputError(f"picture in {file} is one of {', '.join(PICTURES)}")
    return experiment
