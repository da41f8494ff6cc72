"""The model card against a golden one, in which << >> encloses a regular expression."""

import re
from pathlib import Path

import pytest

from peft_cbpt import CBPTConfig
from peft_cbpt.hub.adapter_folder import read_adapter, read_results
from peft_cbpt.hub.card import MARK, make_card, write_card

GOLDEN = (Path(__file__).parent / "golden_card.md").read_text()


def as_pattern(line: str) -> str:
    parts = re.split(r"<<(.*?)>>", line)
    return "".join(part if place % 2 else re.escape(part) for place, part in enumerate(parts))


def differences(card: str) -> list[tuple[str, str]]:
    expected, found = GOLDEN.rstrip("\n").split("\n"), card.rstrip("\n").split("\n")
    pairs = list(zip(expected, found, strict=False))
    wrong = [(line, other) for line, other in pairs if not re.fullmatch(as_pattern(line), other)]
    return wrong + [("", line) for line in found[len(expected) :]] + [(line, "") for line in expected[len(found) :]]


def test_the_card_is_the_golden_one(adapter):
    write_card(adapter, read_adapter(adapter), "ada/purified")
    card = (adapter / "README.md").read_text()
    assert not differences(card)
    assert differences(card.replace("not a proof", "a proof"))
    assert differences(card + "more\n")
    assert str(adapter) not in card and str(Path.home()) + "/" not in card


def test_purify_writes_the_card(purified):
    card = (purified / "README.md").read_text()
    assert MARK in card and "# CBPT adapter" in card and "| clean accuracy |" in card


def test_a_card_without_results_says_that_nothing_was_measured():
    config = CBPTConfig(class_names=["dog", "cat"])
    card = str(make_card(config, None, []))
    assert "Nothing: there was no `results.json`" in card and "model-index" not in card
    assert "not recorded" in card and "not on the Hub" in card and "None" not in card


def test_pictures_and_pages_are_shown(adapter):
    results = read_results(adapter)
    card = str(make_card(read_adapter(adapter), results, ["before_after.png", "report/grad_cam.png", "report.html"]))
    for line in (
        "![before after](before_after.png)",
        "![grad cam](report/grad_cam.png)",
        "[report.html](report.html)",
    ):
        assert f"\n{line}\n" in card
    assert "\n\n\n\n" not in card


@pytest.mark.parametrize("name", ["/somewhere/clip", "~/clip", "./clip"])
def test_no_card_names_a_path(name):
    config = CBPTConfig(class_names=["dog", "cat"], base_model_name_or_path=name)
    assert name not in str(make_card(config, None, []))


DOG = {"class": "dog", "kind": "patch", "score": 0.4, "false_alarm_rate": 1e-4}


@pytest.mark.parametrize(
    ("suspects", "said"),
    [
        (None, None),
        ({"suspects": [], "candidates": [DOG]}, "accuses none of them: dog."),
        ({"suspects": [DOG], "candidates": []}, "names, and dummy triggers aimed at: dog (by patch, score 0.40"),
    ],
)
def test_the_card_says_what_was_suspected(adapter, suspects, said):
    results = read_results(adapter) | {"suspects": suspects}
    card = str(make_card(read_adapter(adapter), results, []))
    assert (said or "All figures") in card
    assert ("The scan names" in card) == (said is not None)
