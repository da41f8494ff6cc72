"""Every command and snippet of the pages is run, here or by the test that is named, or parsed by what it calls."""

import argparse
import ast
import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path

import evaluate
import pytest
import yaml
from peft import PeftModel
from PIL import Image
from transformers import CLIPModel, HfArgumentParser

import peft_cbpt
from peft_cbpt.attacks import TRIGGERS
from peft_cbpt.attacks.attack_file import read_attack
from peft_cbpt.cli import COMMANDS, main
from peft_cbpt.commands import parsing
from peft_cbpt.pocket.dataset import pocket_dataset
from peft_cbpt.pocket.model import open_clip, resolve_model
from peft_cbpt.training.finetune import METHODS
from tests.conftest import FEW_CLASSES

ROOT = Path(__file__).parents[1]
PAGES = {page.name: page.read_text() for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}
PAGES["app/README.md"] = (ROOT / "app" / "README.md").read_text()
TARGETS = re.findall(r"^([\w-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.M)
EXTRAS = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), flags=re.M)
RUN_ELSEWHERE = {
    "README.md": "tests/test_readme.py",
    "index.md": "tests/test_notebook.py",
    "export.md": "tests/tuner/test_tuner_export.py",
    "hub.md": "tests/hub/test_sharing_page.py",
    "python.md": "tests/hub/test_python_page.py",
    "scan.md": "tests/test_scanning.py",
}
"""Who runs a page's Python."""
OTHER_PROGRAMS = ("python3 -m venv", ". .venv/bin/activate", "hf ", "git clone", "cd ")
"""Commands of others, of whose options nothing is checked."""


def blocks(page: str, *languages: str) -> list[str]:
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", PAGES[page], flags=re.S | re.M)


def commands() -> list[tuple[str, str]]:
    """Page and command line, from blocks of shell, indented lines that begin with a program of ours, and sentences."""
    found = []
    for page in PAGES:
        for block in blocks(page, "sh", "bash"):
            found += [(page, line) for line in block.replace("\\\n", " ").splitlines()]
        found += [(page, line) for line in re.findall(r"^    ((?:make|python|torchrun) .*)$", PAGES[page], flags=re.M)]
        prose = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.S | re.M)
        found += [(page, line) for line in re.findall(r"`(python (?:-m )?\w[^`]*)`", prose)]
    single = [(page, one) for page, line in found for one in line.split(" #")[0].split("&&")]
    return list(dict.fromkeys((page, " ".join(line.split())) for page, line in single if line.strip()))


class Parsed(Exception):
    """A program got through its options; what it would do with them is not done."""


@pytest.fixture
def only_parse(monkeypatch):
    """Programs end where they have read their options."""

    def then_stop(parse):
        def stopping(*arguments, **named):
            parse(*arguments, **named)
            raise Parsed

        return stopping

    for name in COMMANDS:
        importlib.import_module(f"peft_cbpt.commands.{name}")
    parse = parsing.parse
    for holder in [one for one in sys.modules.values() if vars(one).get("parse") is parse]:
        monkeypatch.setattr(holder, "parse", then_stop(parse))
    fill_one, parse_args = HfArgumentParser.parse_args_into_dataclasses, argparse.ArgumentParser.parse_args

    def fill(self, *arguments, **named):
        filled = fill_one(self, *arguments, **named)
        if arguments:  # `parse` has more to check
            return filled
        raise Parsed

    monkeypatch.setattr(HfArgumentParser, "parse_args_into_dataclasses", fill)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", then_stop(parse_args))


def run_program(words: list[str], monkeypatch) -> None:
    """Start a script, a module or `peft-cbpt` in this process."""
    if words[0] == "peft-cbpt":
        main(words[1:])
        return
    module = words[0] == "-m"
    words = words[1:] if module else words
    monkeypatch.setattr(sys, "argv", words)
    (runpy.run_module if module else runpy.run_path)(words[0], run_name="__main__")


def test_there_are_commands_to_check():
    assert len(commands()) > 50 and {page for page, _ in commands()} >= {"README.md", "quickstart.md", "scan.md"}


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda one: one[:60])
def test_a_command_is_understood(page, line, only_parse, monkeypatch):
    words = shlex.split(line)
    if words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= set(TARGETS)
    elif words[:2] == ["pip", "install"]:
        assert set(re.findall(r"\[(\w+)\]", line)) <= set(EXTRAS)
    elif line.startswith("scripts/"):
        assert (ROOT / words[0]).is_file()
    elif words[0] == "peft-cbpt" and words[-1] in ("--help", "--version"):
        assert len(words) == 2 or words[1] in COMMANDS
    elif not line.startswith(OTHER_PROGRAMS):
        monkeypatch.chdir(ROOT)
        launchers = r"^(accelerate launch|torchrun( --standalone)?( --nproc_per_node \d+)?|python3?) "
        program = re.sub(launchers, "", line)
        assert program != line or words[0] == "peft-cbpt", f"{page}: {line} starts nothing that is known"
        with pytest.raises(Parsed):
            run_program(shlex.split(program), monkeypatch)


def test_a_command_with_a_wrong_option_is_found(only_parse, monkeypatch, capsys):
    run_program(shlex.split("peft-cbpt purify --model_name_or_path a --dataset_name b --num_shot 3"), monkeypatch)
    assert "did you mean --num_shots" in capsys.readouterr().err
    with pytest.raises(Parsed):
        run_program(shlex.split("peft-cbpt push out --hub_model_id you/name"), monkeypatch)


@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_is_python_and_run_by_somebody(page):
    snippets = blocks(page, "python")
    for snippet in snippets:
        ast.parse(snippet)
    if snippets and page not in RUN_HERE:
        runner = ROOT / RUN_ELSEWHERE[page]
        assert page in runner.read_text(), f"{runner} does not speak of {page}"


@pytest.mark.parametrize("page", PAGES)
def test_settings_and_attacks_can_be_read(page, tmp_path, only_parse, monkeypatch):
    for number, block in enumerate(blocks(page, "yaml", "json")):
        file = tmp_path / f"{number}.json"
        file.write_text(block)
        if "trigger" in yaml.safe_load(block):
            assert read_attack(str(file)).target_class
        else:
            with pytest.raises(Parsed):
                run_program(["peft-cbpt", "purify", "--config", str(file)], monkeypatch)


def run_snippets(page: str, names: dict, **replaced: str) -> dict:
    """Execute a page's Python in `names`, with stand-ins for what a reader has."""
    for number, snippet in enumerate(blocks(page, "python")):
        for word, stand_in in replaced.items():
            assert word in PAGES[page]
            snippet = snippet.replace(word, stand_in)
        exec(compile(snippet, f"{page}, snippet {number}", "exec"), names)
    return names


def models(tmp_path, monkeypatch):
    """Files with settings of their own are evaluated by tests/commands/test_public_model.py."""
    asked = {}
    monkeypatch.setattr(peft_cbpt, "evaluate", lambda model, images, checkpoint: asked.update(vars(checkpoint)))
    ran = run_snippets("models.md", {"images": "pocket:base"}, **{"my/rn50": resolve_model("pocket:resnet-badnet")})
    assert asked["image_std"] == [1, 1, 1]
    assert isinstance(ran["model"], peft_cbpt.CLIPResNetModel)


def data(tmp_path, monkeypatch):
    Image.new("RGB", (60, 60)).save(tmp_path / "a.png")
    (tmp_path / "pairs.csv").write_text("image,caption\na.png,a dark night\n")
    given = {"clip": open_clip("pocket:clean")}
    ran = run_snippets("data.md", given, **{"path/to/cc3m": str(tmp_path / "pairs.csv")})
    assert ran["pairs"][0]["caption"] == "a dark night" and ran["pairs"].skipped == []


def metrics(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert isinstance(run_snippets("evaluate.md", {})["metric"], evaluate.Metric)


def attacks(tmp_path, monkeypatch):
    given = {"images": pocket_dataset("base", "test", 2, FEW_CLASSES)}
    try:
        ran = run_snippets("attacks.md", given)
    finally:
        TRIGGERS.pop("frame", None)
    clean, marked = ran["cells"]
    assert clean["accuracy"] > 0.9 and marked["attack_success_rate"] < 0.5, "this model has no backdoor for a frame"


def encoder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for number, row in enumerate(pocket_dataset("base", "test", 2, FEW_CLASSES)):
        row["image"].save(tmp_path / "folder" / f"{number}.png")
    short = {'output_dir="purified"': 'output_dir="purified", max_steps=1, search_images=2, kinds=["wave"]'}
    ran = run_snippets("encoder.md", {}, **{"my/clip": "pocket:badnet"}, **short)
    base = resolve_model("pocket:badnet")
    assert PeftModel.from_pretrained(CLIPModel.from_pretrained(base), "purified").merge_and_unload()
    both = PeftModel.from_pretrained(CLIPModel.from_pretrained(base), "both")
    assert both.class_names == ran["prompts"].class_names


RUN_HERE = {
    "models.md": models,
    "data.md": data,
    "encoder.md": encoder,
    "evaluate.md": metrics,
    "attacks.md": attacks,
}


@pytest.mark.parametrize("page", RUN_HERE)
def test_snippets_run(page, tmp_path, monkeypatch):
    RUN_HERE[page](tmp_path, monkeypatch)


def test_the_paper_index_names_what_is_there_and_all_of_it():
    page = PAGES["papers.md"]
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| What")]
    for row in rows:
        files = re.findall(r"`([\w/]+\.(?:py|yaml))`", row)
        assert any(file.startswith("tests/") for file in files), f"no test: {row}"
        assert any(not file.startswith("tests/") for file in files), f"no file: {row}"
        assert all((ROOT / file).is_file() for file in files), row
    losses = ast.parse((ROOT / "peft_cbpt" / "method" / "losses.py").read_text()).body
    names = [one.name for one in losses if isinstance(one, ast.FunctionDef)]
    for name in [*TRIGGERS, *METHODS, *names]:
        assert f"`{name}`" in page, f"{name} is not in the index"


def test_internal_links_lead_somewhere():
    """mkdocs checks those of docs/; these are the pages outside."""
    for page in ("README.md", "CONTRIBUTING.md", "SECURITY.md"):
        for link in re.findall(r"\]\(([^)#:]+)[)#]", PAGES[page]):
            assert (ROOT / link).exists(), f"{page}: {link}"


def test_no_code_of_the_hub_is_trusted():
    """As docs/security.md says."""
    assert not [file for file in ROOT.glob("peft_cbpt/**/*.py") if "trust_remote_code=True" in file.read_text()]
