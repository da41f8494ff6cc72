"""The scripts beside the package: what they say before they do anything."""

import re
import subprocess
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


def test_a_benchmark_that_is_asked_for_help_does_not_run():
    command = [sys.executable, "-m", "benchmarks.pocket_purify", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0 and "Runs only the cells that are missing" in done.stdout


def test_a_recipe_without_its_package_is_one_line(tmp_path):
    """CleanCLIP needs kornia, and says so before it renders a pair."""
    code = (
        "import sys, runpy; sys.modules['kornia'] = None; "
        f"sys.argv = ['finetune.py', '--model_name_or_path', 'pocket:badnet', '--output_dir', {str(tmp_path)!r}]; "
        "runpy.run_path('recipes/finetune.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "the package kornia is missing: pip install 'peft-cbpt[baselines]'" in done.stderr.splitlines()[-1]
