"""The README's snippets, as written, and what stands around them; its commands are in test_docs.py."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import peft_cbpt
from peft_cbpt.pocket.model import resolve_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter that `peft-cbpt purify` wrote."""
    folder = tmp_path_factory.mktemp("adapter")
    options = "--model_name_or_path pocket:badnet --dataset_name pocket:base --num_classes 4 --num_shots 2".split()
    options += "--test_images_per_class 2 --num_train_epochs 2 --warmup_epochs 1 --dummy_triggers runner_up".split()
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "recipes/purify.py"]
    subprocess.run([*launch, *options, "--output_dir", str(folder)], check=True, capture_output=True, cwd=ROOT)
    return folder


def test_the_two_line_load_works_in_a_fresh_process(adapter):
    """Also without a tokenizer at hand: everything needed is in the adapter."""
    (load,) = [snippet for snippet in SNIPPETS if "from_pretrained" in snippet]
    given = f"import torch\nbase, adapter = {resolve_model('pocket:badnet')!r}, {str(adapter)!r}\n"
    given += "pixels = torch.rand(3, 3, 48, 48)\n"
    code = given + load + "\nprint(tuple(logits.shape))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(3, 4)"


def test_the_adapter_snippet_works(poisoned_clip, capsys):
    (attach,) = [snippet for snippet in SNIPPETS if "get_peft_model" in snippet]
    exec(compile(attach, "README.md", "exec"), {"clip": poisoned_clip.model})
    assert "trainable params: 1,152" in capsys.readouterr().out


def test_ci_runs_the_readmes_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_landing_pages_calls_fit_the_functions():
    """Run whole they take minutes: test_notebook.py does, where there is time."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "index.md").read_text(), flags=re.S)
    calls = [
        one for one in ast.walk(ast.parse(code)) if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute)
    ]
    assert {one.func.attr for one in calls} == {"scan", "purify"}
    for one in calls:
        given = [ast.literal_eval(value) for value in one.args]
        named = {word.arg: ast.literal_eval(word.value) for word in one.keywords}
        inspect.signature(getattr(peft_cbpt, one.func.attr)).bind(*given, **named)


def test_every_page_is_in_the_sites_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    assert all(f": {page.name}" in menu for page in (ROOT / "docs").glob("*.md"))


def test_workflows_and_issue_forms_are_yaml_and_run_what_is_there():
    files = sorted((ROOT / ".github").rglob("*.yml"))
    assert len(files) == 3
    for file in files:
        assert yaml.safe_load(file.read_text())["name"], file
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    commands = [step["run"].split() for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(), flags=re.M)
    for program, *words in commands:
        assert set(words) <= set(targets) if program == "make" else (ROOT / program).is_file()
