"""Run the experiments, cell by cell, and write their tables and pictures as one page."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.paper.experiment_cells import check_cell, compute_cell, is_older, model_of, purify_cell, read_cell
from benchmarks.paper.experiments import POCKET_PREFIX, Cell, Experiment, attack_and_target, read_experiment
from benchmarks.paper.result_pictures import bars_figure, lines_figure
from benchmarks.paper.result_tables import Grid, markdown_tables
from benchmarks.paper.zoo import poison_settings
from peft_cbpt import __version__
from peft_cbpt.commands.parsing import parse
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import prepare_output, write_bytes, write_text
from peft_cbpt.reports.report import draw_report
from peft_cbpt.reports.style import png_bytes

TARGET_CLASS = "banana"
CONFIGS = "benchmarks/experiments"
Stored = dict[str, dict[str, list[dict[str, Any]]]]
"""By row and column what is stored of every seed."""
REPORT_PICTURES = ("embedding_map", "grad_cam")
HEAD = """# Results

Written by `python -m benchmarks.paper`; every cell is stored with settings, date, versions and commit in `{cells}`.
Means and standard deviations over seeds; each has a poisoned model, shots and a training of its own. A dash marks what
was not run yet. Minutes count neither the making of the poisoned model nor measuring; features and searches for the
target are kept for other cells of a model, so that the first of them pays. The attacks' target is {target}, where none
is named.{quick}
"""
OLDER = "Cells that are older than the code they speak of (stored without a commit, or not by version {version})"
QUICK = " **This is the quick variant: smaller jobs, one seed, one attack.**"


@dataclass
class BenchmarkArguments:
    """Which experiments to run, and where things are."""

    experiments: list[str] = field(default_factory=list, metadata={"help": "Names of experiments; all by default."})
    configs: str = field(default=CONFIGS, metadata={"help": "Folder of their YAML files."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the cells; benchmarks/results/cells, or output/quick/cells."}
    )
    page: str | None = field(
        default=None,
        metadata={
            "help": "Markdown page to write; docs/results.md, for other attacks, seeds or targets output/results.md."
        },
    )
    models: str = field(
        default="output/zoo", metadata={"help": "Folder of the poisoned models, see `benchmarks.paper.zoo`."}
    )
    poison_configs: str = field(default="recipes/configs/pocket", metadata={"help": "How these are made."})
    cache_dir: str = field(default="output/cache", metadata={"help": "Features kept for other runs."})
    attacks: list[str] = field(
        default_factory=list, metadata={"help": "Other columns than the experiment's: ATTACK or ATTACK/TARGET."}
    )
    seeds: list[int] = field(default_factory=list, metadata={"help": "Other seeds than the experiment's."})
    target_class: str = field(default=TARGET_CLASS, metadata={"help": "Target of attacks that name none."})
    quick: bool = field(default=False, metadata={"help": "Every experiment in small."})
    render_only: bool = field(default=False, metadata={"help": "Run nothing, write the page from what is stored."})

    def __post_init__(self) -> None:
        if self.output_dir is None:
            self.output_dir = "output/quick/cells" if self.quick else "benchmarks/results/cells"
        if self.page is None:
            other = self.attacks or self.seeds or self.target_class != TARGET_CLASS
            self.page = (
                "output/quick/results.md" if self.quick else "output/results.md" if other else "docs/results.md"
            )


def benchmark(argv: Sequence[str]) -> None:
    """Run the recipe; see `benchmarks/paper/__main__.py`."""
    (arguments,) = parse([BenchmarkArguments], argv, __doc__ or "")
    experiments = _read_experiments(arguments)
    cells_folder = prepare_output(arguments.output_dir)
    page = Path(arguments.page)
    pictures = prepare_output(str(page.parent / "images" / "results"))
    chosen = [one for one in experiments if not arguments.experiments or one.name in arguments.experiments]
    jobs = (
        []
        if arguments.render_only
        else [(one, row, cell) for one in chosen for row, _, cell in _cells(one, arguments)]
    )
    test_sets = _test_sets(experiments, arguments)
    _check(cell for _, _, cell in jobs)
    try:
        for place, (experiment, row, cell) in enumerate(jobs, 1):
            if read_cell(cells_folder, cell, experiment.test_sets) is None:
                wanted = sorted(test_sets[cell.key])
                print(f"[{place} of {len(jobs)}] {experiment.name}: {row} on {cell.model}", flush=True)
                model = model_of(cell, Path(arguments.models), Path(arguments.poison_configs))
                compute_cell(cell, model, wanted, Path(arguments.cache_dir), cells_folder)
        for experiment in chosen:
            if experiment.picture == "report" and not arguments.render_only:
                _draw_report(experiment, arguments, pictures)
    finally:
        write_text(page, _page(experiments, arguments, cells_folder, pictures))
    print(f"tables and pictures: {page}")


def _read_experiments(arguments: BenchmarkArguments) -> list[Experiment]:
    files = sorted(Path(arguments.configs).glob("*.yaml"), key=lambda file: ("table" not in file.stem, file.stem))
    names = [file.stem for file in files]
    if unknown := sorted(set(arguments.experiments) - set(names)):
        known = ", ".join(names) or "none"
        raise InputError(f"no experiment {unknown[0]!r} in {arguments.configs}; there are: {known}")
    changes: dict[str, Any] = {"attacks": arguments.attacks} if arguments.attacks else {}
    for name in ("seeds", "attacks"):
        if len(set(given := getattr(arguments, name))) < len(given):
            raise InputError(f"{name} {given} name one twice: name each once")
    changes |= {"seeds": arguments.seeds} if arguments.seeds else {}
    changes |= {"paper": {}} if arguments.attacks else {}
    return [replace(read_experiment(file, arguments.quick), **changes) for file in files]


def _cells(experiment: Experiment, arguments: BenchmarkArguments) -> Iterator[tuple[str, str, Cell]]:
    """All cells with their rows and columns, those of one poisoned model together."""
    for seed in experiment.seeds:
        for column in experiment.attacks:
            attack, target_class = attack_and_target(column, arguments.target_class)
            shipped = attack.startswith(POCKET_PREFIX)
            poison = {} if shipped else poison_settings(Path(arguments.poison_configs), attack)
            poison.pop("target_class", None)
            for row in experiment.rows:
                yield row, column, experiment.cell(row, attack, seed, target_class, poison)


def _test_sets(experiments: Sequence[Experiment], arguments: BenchmarkArguments) -> dict[str, set[str]]:
    """By key of a cell the test sets of all experiments that share it, so that it is run once."""
    wanted: dict[str, set[str]] = {}
    for experiment in experiments:
        for _, _, cell in _cells(experiment, arguments):
            wanted.setdefault(cell.key, set()).update(experiment.test_sets)
    return wanted


def _check(cells: Iterable[Cell]) -> None:
    """Check every kind of cell once; the attack and seed of a model change nothing, unless it is a shipped one."""
    kinds = {}
    for cell in cells:
        shipped = cell.attack.startswith(POCKET_PREFIX)
        kinds[cell.key if shipped else replace(cell, attack="", seed=0, poison={}).key] = cell
    for cell in kinds.values():
        check_cell(cell)


def _draw_report(experiment: Experiment, arguments: BenchmarkArguments, pictures: Path) -> None:
    """Grad-CAM and the map of embeddings for the last row's first model, if they are not there."""
    cell = _reported_cell(experiment, arguments)
    targets = {name: pictures / _picture_name(experiment, cell, name) for name in REPORT_PICTURES}
    if all(file.is_file() for file in targets.values()):
        return
    model = model_of(cell, Path(arguments.models), Path(arguments.poison_configs))
    with TemporaryDirectory() as folder:
        purify_cell(cell, model, Path(arguments.cache_dir), attacks=[model], output_dir=folder)
        draw_report(folder, model_name_or_path=model)
        for name, target in targets.items():
            write_bytes(target, (Path(folder) / "report" / f"{name}.png").read_bytes())


def _reported_cell(experiment: Experiment, arguments: BenchmarkArguments) -> Cell:
    row = list(experiment.rows)[-1]
    return next(cell for label, _, cell in _cells(experiment, arguments) if label == row)


def _picture_name(experiment: Experiment, cell: Cell, name: str) -> str:
    return f"{experiment.name}-{name}-{cell.key[:8]}.png"


def _page(experiments: Sequence[Experiment], arguments: BenchmarkArguments, cells: Path, pictures: Path) -> str:
    quick = QUICK if arguments.quick else ""
    head = HEAD.format(cells=arguments.output_dir, target=arguments.target_class, quick=quick)
    stored = {one.name: _stored(one, arguments, cells) for one in experiments}
    older = {name: _older(found) for name, found in stored.items()}
    if stale := [f"{name} ({n_older} of {n_cells})" for name, (n_older, n_cells) in older.items() if n_older]:
        head += f"\n{OLDER.format(version=__version__)}: {', '.join(stale)}.\n"
    return "\n".join([head, *(_section(one, arguments, stored[one.name], pictures) for one in experiments)])


def _stored(experiment: Experiment, arguments: BenchmarkArguments, folder: Path) -> Stored:
    stored: Stored = {row: {attack: [] for attack in experiment.attacks} for row in experiment.rows}
    for row, column, cell in _cells(experiment, arguments):
        if found := read_cell(folder, cell, experiment.test_sets):
            stored[row][column].append(found)
    return stored


def _older(stored: Stored) -> tuple[int, int]:
    """How many cells are older than the code, and how many there are."""
    cells = [one for of_row in stored.values() for found in of_row.values() for one in found]
    return sum(map(is_older, cells)), len(cells)


def _section(experiment: Experiment, arguments: BenchmarkArguments, stored: Stored, pictures: Path) -> str:
    columns, n_wanted, paper = experiment.attacks, len(experiment.seeds), experiment.paper
    if experiment.picture == "domains":
        columns, n_wanted, paper = experiment.test_sets, n_wanted * len(columns), {}
    grid = _grid(experiment, stored)
    text = [f"## {experiment.title}", experiment.about.strip(), markdown_tables(grid, columns, n_wanted, paper)]
    names = []
    if experiment.picture == "report":
        cell = _reported_cell(experiment, arguments)
        names = [_picture_name(experiment, cell, name) for name in REPORT_PICTURES]
    elif experiment.picture and any(found for of_row in grid.values() for found in of_row.values()):
        draw = lines_figure if experiment.picture == "lines" else bars_figure
        names = [f"{experiment.name}.png"]
        write_bytes(pictures / names[0], png_bytes(draw(grid, columns)))
    text += [f"![{experiment.title}](images/results/{name})" for name in names if (pictures / name).is_file()]
    return "\n\n".join([part for part in text if part] + [_costs(experiment, arguments, stored)]) + "\n"


def _grid(experiment: Experiment, stored: Stored) -> Grid:
    """The figures by row and attack, or by row and test set, where all attacks count alike."""
    if experiment.picture != "domains":
        first = experiment.test_sets[0]
        return {
            row: {attack: [one["figures"][first] for one in found] for attack, found in of_row.items()}
            for row, of_row in stored.items()
        }
    return {
        row: {
            name: [one["figures"][name] for found in of_row.values() for one in found] for name in experiment.test_sets
        }
        for row, of_row in stored.items()
    }


def _command(experiment: Experiment, arguments: BenchmarkArguments) -> str:
    """The command that makes a section of the page."""
    words = ["python", "-m", "benchmarks.paper", "--experiments", experiment.name]
    words += ["--configs", arguments.configs] if arguments.configs != CONFIGS else []
    words += ["--quick"] if arguments.quick else []
    words += ["--attacks", *arguments.attacks] if arguments.attacks else []
    words += ["--seeds", *map(str, arguments.seeds)] if arguments.seeds else []
    words += ["--target_class", arguments.target_class] if arguments.target_class != TARGET_CLASS else []
    return f"`{shlex.join(words)}`"


def _costs(experiment: Experiment, arguments: BenchmarkArguments, stored: Stored) -> str:
    """What the defence of each row took, and how to make the table."""
    minutes = {
        row: [one["seconds"]["defend"] / 60 for found in of_row.values() for one in found]
        for row, of_row in stored.items()
    }
    costs = "; ".join(f"{row} {mean(found):.1f}" for row, found in minutes.items() if found)
    command = _command(experiment, arguments)
    if not costs:
        return f"To be made by {command}."
    n_older, n_cells = _older(stored)
    older = f" Older than the code they speak of: {n_older} of {n_cells} cells." if n_older else ""
    return f"Made by {command}. Minutes of defence a cell: {costs}.{older}"
