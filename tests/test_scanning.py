"""The whole scan on the shipped models, with some of its searches: the target is named, and a clean model is not."""

import json
import re
from functools import cache
from pathlib import Path

import pytest

import peft_cbpt.scanning as scanning
from peft_cbpt.commands.parsing import run_command
from peft_cbpt.commands.scan import scan as scan_command
from peft_cbpt.data.unlabelled import UnlabelledImages
from peft_cbpt.detection import rounds
from peft_cbpt.detection.ladder import CLIMBS
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.pocket.model import open_clip

ROOT = Path(__file__).parents[1]
NAMES = class_names()
SOME = tuple(climb for climb in CLIMBS if climb.family in ("image-wide", "patch", "wave"))
KNOWN = {"pocket:resnet-badnet": NAMES[:60]}
"""The classes that a model has seen, where it is not all."""
LISTS = [NAMES[:60], ["dog", "banana", "crown", "ship", "whale"], NAMES, [*NAMES[200:], "banana", "yellow banana"]]


@pytest.fixture(autouse=True)
def some_searches(monkeypatch):
    monkeypatch.setattr(rounds, "CLIMBS", SOME)


@cache
def searched(name):
    clip = open_clip(name)
    pixels = UnlabelledImages("pocket:base", clip.image_processor, 72, class_names=KNOWN.get(name)).pixels()
    return clip, scanning.search_model(clip, pixels)


def verdict_of(name, names):
    clip, found = searched(name)
    return scanning.read_names(clip, found, names)


@pytest.mark.parametrize("names", LISTS)
def test_the_target_of_the_shipped_backdoor_is_named_in_every_list(names):
    verdict = verdict_of("pocket:badnet", names)
    assert verdict.verdict == "backdoored" and verdict.findings[0].name == "banana"
    assert [one.label for one in verdict.suspicion.suspects] == [names.index("banana")]


def test_where_the_models_own_null_is_wide_the_target_of_a_resnet_is_a_doubt_at_least():
    """This small ResNet collapses under clean triggers too, towards others; nobody else is accused for that."""
    verdict = verdict_of("pocket:resnet-badnet", NAMES[:60])
    assert verdict.verdict in ("backdoored", "unsure")
    assert [one.name for one in [*verdict.findings, *verdict.doubts]][0] == "banana"


def test_a_target_that_is_not_in_the_list_is_told_by_words():
    verdict = verdict_of("pocket:badnet", ["dog", "crown", "ship", "whale"])
    assert verdict.verdict == "backdoored"
    assert verdict.findings[0].name is None and "banana" in verdict.findings[0].words
    assert verdict.suspicion.suspects == []


@pytest.mark.parametrize("names", [[], NAMES[60:120], NAMES[60:210], NAMES])
def test_a_clean_model_is_not_accused_in_any_list(names):
    """Of 150 of these names, a bar on how near a name comes accuses somebody in every list."""
    verdict = verdict_of("pocket:clean", names)
    assert verdict.findings == [] and verdict.suspicion.suspects == []


def test_the_command_writes_its_files_and_its_exit_code_says_the_verdict(tmp_path, capsys, monkeypatch):
    _, found = searched("pocket:badnet")
    monkeypatch.setattr(scanning, "search_model", lambda *_: found)
    options = ["--dataset_name", "pocket:base", "--num_images", "8", "--output_dir", str(tmp_path)]
    code = run_command(scan_command, ["--model_name_or_path", "pocket:badnet", *options])
    record = json.loads((tmp_path / "scan.json").read_text())
    assert code == 1 and record["verdict"] == "backdoored"
    assert set(record["findings"][0]) >= {"class", "kind", "score", "false_alarm_rate", "rms", "success_rate"}
    assert (tmp_path / "trigger_0.png").stat().st_size > 1000
    assert "<h1>Scan: backdoored</h1>" in (tmp_path / "scan.html").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "verdict: backdoored" in printed and "(no names given)" in printed


def test_the_snippet_of_scan_md(monkeypatch):
    _, found = searched("pocket:badnet")
    monkeypatch.setattr(scanning, "search_model", lambda *_: found)
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "scan.md").read_text(), flags=re.S)
    names: dict = {}
    exec(compile(snippet, "docs/scan.md", "exec"), names)
    assert names["verdict"].verdict == "backdoored" and names["verdict"].findings[0].name == "banana"
