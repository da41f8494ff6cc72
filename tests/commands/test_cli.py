"""The program's first words, the help of its commands, and what it says where nobody watches."""

import logging
import re
import subprocess
import sys
from dataclasses import fields
from io import StringIO
from pathlib import Path
from time import perf_counter

import pytest
import yaml
from accelerate.utils import tqdm
from transformers import TrainingArguments

import peft_cbpt
import peft_cbpt_cli
from peft_cbpt.cli import main
from peft_cbpt.commands.parsing import run_command
from peft_cbpt.common.records import Stopwatch
from peft_cbpt.training.cbpt_arguments import WITHOUT_EFFECT, CBPTTrainingArguments

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cli.md").read_text()
WITH_OPTIONS = [name for name in peft_cbpt_cli.COMMANDS if name != "env"]
REQUIRED = "--model_name_or_path a --dataset_name b --output_dir c".split()


def help_of(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_the_first_words_are_quick_and_load_nothing(word):
    code = f"import sys, peft_cbpt_cli; code = peft_cbpt_cli.main([{word!r}]); print(code, 'torch' in sys.modules)"
    start = perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    took = perf_counter() - start
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr
    assert took < 3, "0.1 s where nothing else runs"


def test_help_has_a_line_for_every_command(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, text in peft_cbpt_cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", printed, flags=re.M)
        assert (ROOT / "peft_cbpt" / "commands" / f"{name}.py").is_file()
    assert max(map(len, printed.splitlines())) <= 120


def test_the_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"peft-cbpt {peft_cbpt.__version__}"


@pytest.mark.parametrize("words, said", [(["purfy"], "did you mean purify?"), (["xyz"], "--help"), ([], "no command")])
def test_an_unknown_command_is_one_line(words, said, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize("command", WITH_OPTIONS)
def test_the_example_of_a_command_has_options_that_are_there(command, capsys):
    printed = help_of(command, capsys)
    listed, example = printed.split("example:")
    assert f"peft-cbpt {command} " in example
    names = re.findall(r"^  (--\w+)", listed, flags=re.M)
    assert set(re.findall(r"--\w+", example)) <= set(names)
    assert len(names) == len(set(names)), "an option is listed twice"


def test_purify_lists_ten_options_then_ours_then_the_trainers(capsys):
    printed = help_of("purify", capsys)
    first, ours, trainers = re.split(r"^more:|^of transformers.*:", printed, flags=re.M)

    def names(text):
        return set(re.findall(r"^  --(\w+)", text, flags=re.M))

    assert len(names(first)) == 10 and {"model_name_or_path", "dataset_name", "output_dir", "num_shots"} < names(first)
    of_trainer = {one.name for one in fields(TrainingArguments)}
    own = {one.name for one in fields(CBPTTrainingArguments)} - of_trainer
    refused = {name for group in WITHOUT_EFFECT.values() for name in group}
    assert own - refused <= names(ours) and not names(ours) & of_trainer
    assert names(trainers) <= of_trainer and "num_train_epochs" in names(trainers)
    assert not names(printed) & refused, "an option that is refused is offered"


def test_a_mistyped_option_names_the_nearest(capsys):
    assert main(["purify", *REQUIRED, "--num_shot", "4"]) == 2
    assert "unknown option '--num_shot', did you mean --num_shots?" in capsys.readouterr().err
    assert main(["purify", "--modle_name_or_path", "a"]) == 2
    assert "did you mean --model_name_or_path?" in capsys.readouterr().err


def test_a_mistyped_key_of_a_config_names_the_nearest(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"dataset_nane": "b"}))
    assert main(["purify", "--config", str(tmp_path / "config.yaml")]) == 2
    assert "unknown setting 'dataset_nane'" in (error := capsys.readouterr().err)
    assert "did you mean dataset_name?" in error


def test_env_says_what_a_bug_report_needs(capsys, monkeypatch):
    monkeypatch.setenv("PEFT_CBPT_CACHE", "/home/somebody/cache")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert main(["env"]) == 0
    printed = capsys.readouterr().out
    for name in ("peft_cbpt", "torch", "transformers", "peft", "datasets", "python", "devices"):
        assert re.search(rf"^{name}( \[\w+\])?: \S", printed, flags=re.M), name
    assert "somebody" not in printed and "secret" not in printed


@pytest.mark.parametrize("command", peft_cbpt_cli.COMMANDS)
def test_the_page_has_every_command(command):
    assert f"`{command}`" in PAGE


def test_the_page_has_every_exit_code():
    assert re.findall(r"^\| (\d+) \|", PAGE, flags=re.M) == ["0", "1", "2", "4", "130"]


class Terminal(StringIO):
    def __init__(self, is_one):
        super().__init__()
        self.isatty = lambda: is_one


def with_bars(argv):
    for _ in range(2):
        with Stopwatch()("measure"):
            list(tqdm(range(5), desc="encoding"))


@pytest.mark.parametrize("is_terminal", [False, True])
def test_bars_are_for_terminals_and_a_log_file_gets_a_line_a_stage(is_terminal, monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal(is_terminal))
    assert run_command(with_bars, []) == 0
    printed = sys.stderr.getvalue()
    if is_terminal:
        assert "encoding: 100%" in printed and "measure" not in printed
    else:
        words = [line.split(" ", 1)[1].strip() for line in printed.splitlines()]
        assert words == ["measure", "encoding", "measure"] and "\r" not in printed


def test_bars_are_back_after_a_command(capsys):
    main(["purify", "--nonsense"])
    assert not tqdm(range(3)).disable


def test_a_log_marks_what_is_no_stage(capsys):
    run_command(lambda _: logging.getLogger("peft_cbpt.data").warning("two spellings"), [])
    assert " warning: two spellings\n" in capsys.readouterr().err
