"""The scripts beside the package: what they say before they do anything."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [
    file.relative_to(ROOT)
    for folder in ("benchmarks", "benchmarks/paper", "recipes", "scripts")
    for file in sorted((ROOT / folder).glob("*.py"))
    if "__name__ ==" in file.read_text()
]


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_every_script_parses_options(script):
    """One that does not runs when it is asked for help; what parses shows its docstring or its own page."""
    source = (ROOT / script).read_text()
    assert re.search(r"ArgumentParser\(|run_command\(|sys\.exit\(main\(\[", source)


def test_a_benchmark_that_is_asked_for_help_does_not_run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pocket_purify", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("benchmarks.pocket_purify", run_name="__main__")
    assert ended.value.code == 0 and "Runs only the cells that are missing" in capsys.readouterr().out


def test_a_recipe_without_its_package_is_one_line(monkeypatch, tmp_path, capsys):
    """CleanCLIP needs kornia, and says so before it renders a pair."""
    for name in [one for one in sys.modules if one.startswith("kornia.")]:  # other tests may have loaded it
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kornia", None)
    options = ["--model_name_or_path", "pocket:badnet", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *options])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "recipes" / "finetune.py"), run_name="__main__")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in said, said
    assert "the package kornia is missing: pip install 'peft-cbpt[baselines]'" in said.splitlines()[-1]


def test_the_demo_without_its_package_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^error: the demo needs gradio: pip install 'peft-cbpt\[app\]'$"):
        runpy.run_path(str(ROOT / "app" / "app.py"))
