"""The figures that README and docs show are those of the stored cells."""

import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks import photos_purify, pocket_purify
from benchmarks.paper.benchmark import benchmark
from benchmarks.paper.zoo import print_table

ROOT = Path(__file__).parents[2]
README = " ".join((ROOT / "README.md").read_text().split())
PAGE = (ROOT / "docs" / "results.md").read_text()


def averages(title: str, section: str = "Table 1") -> dict[str, float]:
    """The averages of a section's table by row, as shown."""
    table = PAGE.split(f"## {section}")[1].split(f"| {title} |")[1].split("\n\n")[0]
    return {row: float(shown) for row, shown in re.findall(r"^\| ([^|*]+?) \|.*\| ([\d.]+) \|$", table, re.MULTILINE)}


def domain(title: str, name: str) -> dict[str, str]:
    """A column of Figure 6's table by row, as shown."""
    header, _, *rows = PAGE.split("## Figure 6")[1].split(f"| {title} |")[1].split("\n\n")[0].splitlines()
    column = [cell.strip() for cell in header.strip("|").split("|")].index(name) + 1
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {row[0]: row[column].split(" ")[0] for row in cells}


def success_of_default(models: str) -> list[float]:
    """Attack success rates of the default's cells on all models whose names match."""
    files = (ROOT / "benchmarks" / "results" / "cells").glob(f"{models}/cbpt-*.json")
    cells = [json.loads(file.read_text()) for file in files]
    default = [one for one in cells if one["cell"]["settings"] == {"num_shots": 16}]
    return [one["figures"]["pocket:base"]["attack_success_rate"] for one in default]


def test_the_page_of_results_is_made_of_the_stored_cells(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    shutil.copytree("docs/images/results", tmp_path / "images" / "results")
    for draw in ("bars_figure", "lines_figure", "png_bytes"):
        monkeypatch.setattr(f"benchmarks.paper.benchmark.{draw}", lambda *_: b"")
    benchmark(["--render_only", "true", "--page", str(tmp_path / "results.md")])
    assert (tmp_path / "results.md").read_text() == PAGE, "run: python -m benchmarks.paper --render_only true"


@pytest.mark.parametrize(("stored", "page"), [("zoo_other.json", "attacks.md"), ("zoo_photos.json", "photographs.md")])
def test_the_tables_of_other_zoos_are_made_of_the_stored_models(stored, page, capsys):
    print_table(json.loads((ROOT / "benchmarks" / "results" / stored).read_text()))
    assert capsys.readouterr().out in (ROOT / "docs" / page).read_text()


def test_the_tables_of_readme_and_models_are_made_of_the_stored_runs(capsys, monkeypatch):
    monkeypatch.setattr(pocket_purify, "peft_cbpt", None)  # what is not stored is not run here
    monkeypatch.setattr("sys.argv", ["pocket_purify"])
    pocket_purify.main()
    clip, siglip = capsys.readouterr().out.split("\n\n")
    assert " ".join(clip.split()) in README
    assert " ".join(siglip.split()) in " ".join((ROOT / "docs/models.md").read_text().split())


def test_the_speed_of_the_default_is_the_stored_one():
    stored = json.loads((ROOT / "benchmarks" / "results" / "speed_default.json").read_text())
    page = (ROOT / "docs" / "performance.md").read_text()
    for n_classes, job in stored["jobs"].items():
        hours = [
            f"{job['seconds_extrapolated'][name] / 3600:.1f} h" for name in ("straightforward", "prompts", "features")
        ]
        times = [f"{job[f'times_faster_than_{name}']:.1f}" for name in ("prompts", "straightforward")]
        assert f"| {int(n_classes):,} x {stored['shots']} | {' | '.join([*hours, *times])} |" in page


def test_the_table_of_purified_photographs_is_made_of_the_stored_runs(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["photos_purify"])
    photos_purify.main()
    assert capsys.readouterr().out in (ROOT / "docs/photographs.md").read_text()


def test_the_readmes_averages_are_those_of_table_1():
    clean = {row: f"{figure:.1f}" for row, figure in averages("Clean accuracy (%)").items()}
    attack = {row: f"{figure:.1f}" for row, figure in averages("Attack success rate (%)").items()}
    default = success_of_default("*-banana-seed[012]")
    for sentence in (
        f"takes the average attack success from {attack['no defence']} to {attack['CBPT, default']}% "
        f"({100 * max(default):.1f}% on the worst model)",
        f"the clean accuracy from {clean['no defence']} to {clean['CBPT, default']}%",
        f"Fine-tuning leaves {attack['FT']}% at a clean accuracy of {clean['FT']}, "
        f"CleanCLIP {attack['CleanCLIP']}% at {clean['CleanCLIP']}, "
        f"the published inner loop {attack['CBPT, read literally']}% at {clean['CBPT, read literally']}",
    ):
        assert sentence in README
    mean = averages("Attack success rate (%)", "Targets and seeds")["CBPT, default"]
    worst = max(success_of_default("*-seed7"))
    worst_later = max(later := success_of_default("*-seed11"))
    assert len(later) == 10
    assert (
        f"not made with keep {mean:.1f}% on average, {100 * worst:.1f}% at most, "
        f"and ten more, made later, {100 * worst_later:.1f}% at most" in README
    )
    sketch = {row: figures for row, figures in domain("Clean accuracy (%)", "pocket:sketch").items()}
    assert f"clean accuracy falls from {sketch['no defence']} to {sketch['CBPT, default']}%" in README
    norms = "Norm and budget"
    clean, attack = averages("Clean accuracy (%)", norms), averages("Attack success rate (%)", norms)
    best = max(clean, key=lambda row: clean[row] - attack[row])
    assert best.startswith("l0 36 pixels")
    assert (
        f"36 free pixels) keeps {attack[best]}% on BadNet and BadCLIP, at a clean accuracy of {clean[best]}%" in README
    )
    robust = averages("Accuracy of the true class under the trigger (%)")["CBPT, default"]
    assert f"on average in {robust:.0f}%" in README
