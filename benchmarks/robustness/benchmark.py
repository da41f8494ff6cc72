"""The cells of the robustness tests: which there are, how one is made and stored."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.robustness import interfaces, planted, reactivation, rebound
from benchmarks.robustness.defences import DEFENCES, FINE_TUNING, Defended, defend, open_defended
from benchmarks.robustness.page import render
from benchmarks.robustness.world import POCKET, SHOTS, TEST_IMAGES, World, photographs
from peft_cbpt.commands.parsing import parse
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import write_json, write_text
from peft_cbpt.common.records import Stopwatch, made_now
from peft_cbpt.pocket.model import resolve_model

Test = Callable[[str, Defended, World, int], dict[str, Any]]
TESTS: dict[str, tuple[Test, dict[str, Any]]] = {
    "scan": (planted.scanned, {}),
    "planted": (planted.planted, {}),
    "rebound": (rebound.rebound, rebound.SETTINGS),
    "reactivation": (reactivation.reactivation, reactivation.SETTINGS),
    "interfaces": (interfaces.interfaces, interfaces.SETTINGS),
}
"""Each with its settings, which a cell records."""
ONLY_UNDEFENDED = ("scan",)


@dataclass
class RobustnessArguments:
    """Which cells to make, and where things are."""

    models: list[str] = field(
        default_factory=list, metadata={"help": "Poisoned models: folders with attack.json, pocket:NAME."}
    )
    tests: list[str] = field(default_factory=lambda: list(TESTS), metadata={"help": "Tests; all by default."})
    defences: list[str] = field(default_factory=lambda: list(DEFENCES), metadata={"help": "Defences; all by default."})
    photos: str | None = field(default=None, metadata={"help": "Folder of the photographs, if models are of them."})
    seed: int = field(default=0, metadata={"help": "Of defences and tests."})
    cells: str = field(default="benchmarks/results/robustness", metadata={"help": "Folder of the cells."})
    work_dir: str = field(default="output/robustness", metadata={"help": "Folder of the defended models."})
    page: str = field(default="docs/robustness.md", metadata={"help": "Markdown page to write."})

    def __post_init__(self) -> None:
        for given, known in ((self.tests, TESTS), (self.defences, DEFENCES)):
            if unknown := [one for one in given if one not in known]:
                raise InputError(f"{unknown[0]!r} is unknown; choose among {', '.join(known)}")


def benchmark(argv: Sequence[str]) -> None:
    """Make what is missing, then the page; see `benchmarks/robustness/__main__.py`."""
    (arguments,) = parse([RobustnessArguments], argv, __doc__ or "")
    try:
        for model in arguments.models:
            world = photographs(arguments.photos, model) if arguments.photos else POCKET
            for test, defence in _wanted(arguments):
                file = (
                    Path(arguments.cells) / world.name / f"{name_of(model)}-{defence}-{test}-seed{arguments.seed}.json"
                )
                if not file.is_file():
                    print(f"{test}: {defence} on {model}", flush=True)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_json(file, cell(model, defence, test, world, arguments))
    finally:
        write_text(Path(arguments.page), render(read_cells(Path(arguments.cells))))
    print(arguments.page)


def _wanted(arguments: RobustnessArguments) -> Iterator[tuple[str, str]]:
    for test in arguments.tests:
        for defence in arguments.defences:
            if defence == "none" or test not in ONLY_UNDEFENDED:
                yield test, defence


def name_of(model: str) -> str:
    """Name of a model, as in the files of its cells."""
    return Path(resolve_model(model)).name


def cell(model: str, defence: str, test: str, world: World, arguments: RobustnessArguments) -> dict[str, Any]:
    """The figures of a test on a defended model, which is made if it is missing."""
    folder = Path(arguments.work_dir) / world.name / f"{name_of(model)}-seed{arguments.seed}" / defence
    made = defend(defence, model, world, arguments.seed, folder)
    stopwatch, (run, settings) = Stopwatch(), TESTS[test]
    with stopwatch(test):
        figures = run(model, open_defended(model, folder), world, arguments.seed)
    data = {"dataset": world.name, "num_classes": world.num_classes, "num_shots": SHOTS, "test_images": TEST_IMAGES}
    return {
        "schema_version": 1,
        "world": world.name,
        "model": name_of(model),
        "attacks": [attack.as_dict() for attack in world.attacks(model)],
        "defence": defence,
        "test": test,
        "seed": arguments.seed,
        "settings": data | settings | (FINE_TUNING if defence in ("ft", "cleanclip") else {}),
        "made": made,
        "figures": figures,
        "seconds": stopwatch.seconds[test],
        "num_threads": torch.get_num_threads(),
        **made_now(),
    }


def read_cells(folder: Path) -> list[dict[str, Any]]:
    """All that is stored."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*/*.json"))]
