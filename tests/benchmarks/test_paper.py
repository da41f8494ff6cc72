"""The experiments: their files, cells that are stored and shared, pages that mark what is missing."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from benchmarks.paper.benchmark import benchmark
from benchmarks.paper.experiments import Experiment, attack_and_target, read_experiment
from benchmarks.paper.zoo import PAPER_ATTACKS, poison_settings
from peft_cbpt.commands.parsing import run_command

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "benchmarks" / "experiments").glob("*.yaml"))
CONFIGS = ROOT / "recipes" / "configs" / "pocket"
SMALL = (
    "num_shots: 1, num_train_epochs: 1, warmup_epochs: 0, dummy_triggers: runner_up, inversion_steps: 1, use_cpu: true"
)
TINY = f"""
title: "Tiny"
about: As small as can be.
attacks: ["pocket:badnet"]
seeds: [0, 1]
data: {{dataset_name: "pocket:base", num_classes: 4, test_images_per_class: 2}}
picture: bars
rows:
  nothing: {{method: none}}
  CBPT: {{method: cbpt, {SMALL}}}
quick: {{seeds: [0], rows: {{nothing: {{method: none}}}}}}
"""


def cells_of(experiment: Experiment) -> set[str]:
    return {
        experiment.cell(row, attack, seed, "banana", {}).key
        for row in experiment.rows
        for attack in experiment.attacks
        for seed in experiment.seeds
    }


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_experiment_can_be_read(file: Path, quick: bool):
    experiment = read_experiment(file, quick)
    assert len(cells_of(experiment)) == len(experiment.rows) * len(experiment.attacks) * len(experiment.seeds)
    for published in experiment.paper.values():
        assert len(published) == len(experiment.attacks)


def test_every_attack_has_settings():
    assert all(poison_settings(CONFIGS, attack)["trigger"] == attack for attack in PAPER_ATTACKS)


def test_figure_6_is_made_of_cells_of_table_1():
    table, figure = (
        read_experiment(ROOT / f"benchmarks/experiments/{name}.yaml", False) for name in ("table1", "fig6")
    )
    assert cells_of(figure) < cells_of(table)
    assert figure.test_sets == table.test_sets


def test_a_cell_depends_on_how_its_model_was_made():
    experiment = read_experiment(ROOT / "benchmarks/experiments/table1.yaml", False)
    keys = {experiment.cell("FT", "badnet", 0, "banana", poison).key for poison in ({}, {"num_epochs": 3})}
    keys |= {experiment.cell("FT", "badnet", seed, target, {}).key for seed, target in ((1, "banana"), (0, "dog"))}
    assert len(keys) == 4


def test_a_column_may_have_a_target_of_its_own():
    assert attack_and_target("sig/wine glass", "banana") == ("sig", "wine glass")
    assert attack_and_target("pocket:badnet", "banana") == ("pocket:badnet", "banana")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., int]:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.yaml").write_text(TINY)

    def run_in_folder(*options: str) -> int:
        places = {"configs": "configs", "output_dir": "cells", "page": "page.md", "cache_dir": "cache"}
        words = [word for name, place in places.items() for word in (f"--{name}", str(tmp_path / place))]
        return run_command(benchmark, [*words, *options])

    return run_in_folder


def column(page: str, title: str) -> dict[str, str]:
    """Rows and first column of the table under a title."""
    table = page.split(f"| {title} |")[1].split("\n\n")[0]
    return dict(re.findall(r"^\| ([^|-][^|]*?) \| ([^|]+?) \|$", table, re.MULTILINE))


def test_cells_are_stored_shown_and_not_run_again(run, tmp_path, capsys):
    assert run("--seeds", "0") == 0
    files = list((tmp_path / "cells").glob("pocket_badnet-banana-seed0/*.json"))
    stored = {one["cell"]["method"]: one for one in map(json.loads, (file.read_text() for file in files))}
    assert set(stored) == {"none", "cbpt"}
    figures = {name: one["figures"]["pocket:base"] for name, one in stored.items()}
    assert figures["none"]["attack_success_rate"] > 0.5
    assert stored["cbpt"]["seconds"].keys() == {"defend", "measure"}
    page = (tmp_path / "page.md").read_text()
    for title, name in (
        ("Clean accuracy (%)", "clean_accuracy"),
        ("Attack success rate (%)", "attack_success_rate"),
        ("Accuracy of the true class under the trigger (%)", "robust_accuracy"),
    ):
        shown = {"nothing": figures["none"][name], "CBPT": figures["cbpt"][name]}
        assert column(page, title) == {label: f"{100 * value:.1f}" for label, value in shown.items()}
    assert (tmp_path / "images" / "results" / "tiny.png").stat().st_size > 5000

    capsys.readouterr()
    times = {file: file.stat().st_mtime_ns for file in files}
    next(file for file in files if file.name.startswith("none")).unlink()
    assert run("--render_only", "true") == 0
    with_gaps = column((tmp_path / "page.md").read_text(), "Attack success rate (%)")
    asr = f"{100 * figures['cbpt']['attack_success_rate']:.1f}"
    assert with_gaps == {"nothing": "–", "CBPT": f"{asr} (1 of 2)"}
    assert run("--seeds", "0") == 0
    printed = capsys.readouterr().out
    assert "tiny: nothing on" in printed and "tiny: CBPT on" not in printed
    assert all(file.stat().st_mtime_ns == times[file] for file in files if file.name.startswith("cbpt"))
    assert column((tmp_path / "page.md").read_text(), "Attack success rate (%)")["CBPT"] == asr


def test_grad_cam_and_the_map_are_drawn_for_a_model_in_a_folder(run, tmp_path):
    content = yaml.safe_load(TINY) | {"picture": "report", "seeds": [0], "attacks": ["badnet"]}
    (tmp_path / "configs" / "tiny.yaml").write_text(yaml.safe_dump(content))
    poison = {"trigger": "badnet", "num_pairs": 32, "num_epochs": 1, "poison_rate": 0.1, "test_images_per_class": 1}
    (tmp_path / "poison_badnet.yaml").write_text(yaml.safe_dump(poison))
    assert run("--models", str(tmp_path / "zoo"), "--poison_configs", str(tmp_path)) == 0
    assert (tmp_path / "zoo" / "badnet-banana-seed0" / "training.json").is_file()
    page = (tmp_path / "page.md").read_text()
    pictures = re.findall(r"\(images/results/(.*?)\)", page)
    assert len(pictures) == 2 and all((tmp_path / "images" / "results" / name).is_file() for name in pictures)


def test_two_targets_of_one_attack_are_two_columns(run, tmp_path):
    content = yaml.safe_load(TINY) | {"attacks": ["sig/cyclone", "sig/banana"], "seeds": [0]}
    content["rows"] = {"nothing": {"method": "none"}}
    (tmp_path / "configs" / "tiny.yaml").write_text(yaml.safe_dump(content))
    experiment = read_experiment(tmp_path / "configs" / "tiny.yaml", False)
    poison = poison_settings(CONFIGS, "sig")
    poison.pop("target_class", None)
    for place, target in enumerate(("cyclone", "banana")):
        cell = experiment.cell("nothing", "sig", 0, target, poison)
        names = ("clean_accuracy", "attack_success_rate", "attack_success_rate_published", "robust_accuracy")
        figures = {"pocket:base": dict.fromkeys(names, 0.25 + place / 2)}
        file = tmp_path / "cells" / cell.file
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"figures": figures, "seconds": {"defend": 0.0, "measure": 1.0}}))
    assert run("--render_only", "true", "--poison_configs", str(CONFIGS)) == 0
    page = (tmp_path / "page.md").read_text()
    assert "| Attack success rate (%) | sig/cyclone | sig/banana | average |" in page
    assert "| nothing | 25.0 | 75.0 | 50.0 |" in page


def test_a_damaged_cell_and_one_without_a_test_set_are_run_again(run, tmp_path, capsys):
    assert run("--quick") == 0
    (file,) = (tmp_path / "cells").glob("*/none-*.json")
    whole = json.loads(file.read_text())
    for damaged in ("{", json.dumps(whole | {"figures": {}})):
        file.write_text(damaged)
        assert run("--quick") == 0
        assert json.loads(file.read_text())["figures"] == whole["figures"]
    page = (tmp_path / "page.md").read_text()
    assert "quick variant" in page and "--experiments tiny --configs" in page


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rows": {"a": {"method": "magic"}}}, "method of row 'a'"),
        ({"attacks": ["nonsense"]}, "unknown attack 'nonsense'"),
        ({"attacks": ["nonsense/dog"]}, "unknown attack 'nonsense'"),
        ({"attacks": ["pocket:badnet/dog"]}, "aims at 'banana', not at 'dog'"),
        ({"picture": "film"}, "picture in"),
        ({"colour": "red"}, "unknown setting 'colour'"),
        ({"title": None}, "lacks 'title'"),
        ({"rows": {"a": {"method": "cbpt", "num_shot": 3}}}, "unknown setting 'num_shot'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_experiments_are_refused(run, tmp_path, capsys, change, complaint):
    content = yaml.safe_load(TINY) | change
    (tmp_path / "configs" / "tiny.yaml").write_text(
        yaml.safe_dump({name: value for name, value in content.items() if value is not None})
    )
    assert run() == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error:")]
    assert complaint in line
    assert not list((tmp_path / "cells").rglob("*.json"))


def test_a_target_that_is_not_measured_is_refused_before_anything_runs(run, tmp_path, capsys):
    (tmp_path / "configs" / "tiny.yaml").write_text(TINY.replace("pocket:badnet", "badnet"))
    assert run("--target_class", "wind chime") == 2
    assert "one of the 4 classes measured" in capsys.readouterr().err
    assert not list((tmp_path / "cells").rglob("*.json"))


@pytest.mark.parametrize(
    "options, complaint",
    [
        (["--target_class", "cyclone"], "aims at 'banana', not at 'cyclone'"),
        (["--seeds", "0", "0"], "name one twice"),
        (["--attacks", "sig", "sig"], "name one twice"),
    ],
)
def test_runs_that_would_be_mislabelled_are_refused(run, capsys, options, complaint):
    assert run(*options) == 2
    assert complaint in capsys.readouterr().err


def test_an_unknown_experiment_is_refused(run, capsys):
    assert run("--experiments", "table9") == 2
    assert "no experiment 'table9'" in capsys.readouterr().err
