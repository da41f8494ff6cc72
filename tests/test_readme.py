"""The README's snippets and commands, as written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from peft_cbpt import cli
from peft_cbpt.pocket.model import resolve_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.S)
COMMANDS = re.findall(r"```sh\n(.*?)```", README, flags=re.S)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter that `peft-cbpt purify` wrote."""
    folder = tmp_path_factory.mktemp("adapter")
    options = "--model_name_or_path pocket:badnet --dataset_name pocket:base --num_classes 4 --num_shots 2".split()
    options += "--test_images_per_class 2 --num_train_epochs 2 --warmup_epochs 1".split()
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


def test_the_commands_exist():
    targets = re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(), flags=re.M)
    for command in COMMANDS:
        words = command.split()
        if words[0] == "make":
            assert words[1] in targets
        elif words[0] == "peft-cbpt":
            assert words[1] in cli.COMMANDS
        else:
            assert words[:2] == ["accelerate", "launch"] and (ROOT / words[2]).exists()


def test_ci_runs_the_readmes_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_linked_files_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
