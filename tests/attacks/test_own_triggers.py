"""Triggers of a user's own: allowed by name, or not imported."""

import json
import sys

import pytest

from peft_cbpt.attacks import TRIGGERS, trigger_from_config, trigger_to_config
from peft_cbpt.attacks.attack_file import Attack, read_attack
from peft_cbpt.attacks.own_triggers import allow_trigger
from peft_cbpt.cli import main
from peft_cbpt.common.errors import InputError
from tests.conftest import FEW_CLASSES

MODULE = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Dimmed:
    share: float = 0.5

    def apply_image(self, pixels, sample_ids):
        return self.share * pixels

    def apply_text(self, caption):
        return caption

@dataclass
class Thawed:
    apply_image = apply_text = print

@dataclass(frozen=True)
class Mute:
    apply_image = print

@dataclass(frozen=True)
class Needy:
    width: int
    apply_image = apply_text = print
"""
NAME = "own_trigger_module:Dimmed"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of a user's, found from here and not yet imported."""
    (tmp_path / "own_trigger_module.py").write_text(MODULE)
    (tmp_path / "own_broken_module.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("own_trigger_module", None)
    TRIGGERS.pop(NAME, None)


def test_a_file_that_names_a_module_imports_nothing(module):
    (module / "attack.json").write_text(json.dumps({"trigger": {"name": NAME}, "target_class": "dog"}))
    with pytest.raises(InputError, match=f"--allow_triggers {NAME} runs it, if you trust"):
        read_attack(str(module))
    assert "own_trigger_module" not in sys.modules
    allow_trigger(NAME)
    attack = read_attack(str(module))
    assert attack.name == NAME and attack.trigger.share == 0.5


@pytest.mark.parametrize(
    "name, message",
    [
        ("Dimmed", "MODULE:CLASS"),
        (":Dimmed", "MODULE:CLASS"),
        ("no_such_module:Dimmed", "PYTHONPATH"),
        ("own_broken_module:Dimmed", "cannot import the trigger own_broken_module:Dimmed: ZeroDivisionError"),
        ("own_trigger_module:Missing", "has no class Missing"),
        ("own_trigger_module:Thawed", "is no trigger"),
        ("own_trigger_module:Mute", "is no trigger"),
        ("json:dumps", "is no trigger"),
    ],
)
def test_what_is_no_trigger_is_refused(name, message, module):
    with pytest.raises(InputError, match=message):
        allow_trigger(name)
    assert name not in TRIGGERS


def test_a_trigger_without_a_name_says_how_it_gets_one(module):
    from own_trigger_module import Dimmed

    with pytest.raises(InputError, match=r"TRIGGERS\[NAME\] = Dimmed"):
        trigger_to_config(Dimmed())


def test_a_setting_without_a_default_must_be_given(module):
    allow_trigger("own_trigger_module:Needy")
    try:
        with pytest.raises(InputError, match="needs its setting 'width'"):
            trigger_from_config({"name": "own_trigger_module:Needy"})
    finally:
        TRIGGERS.pop("own_trigger_module:Needy")


def test_the_commands_poison_and_measure_with_it_when_allowed(module, capsys):
    poison = ["poison", "--trigger", NAME, "--trigger_settings", '{"share": 0.25}', "--num_pairs", "320"]
    poison += ["--num_epochs", "1", "--poison_rate", "0.05", "--test_images_per_class", "1", "--learning_rate", "1e-4"]
    poison += ["--output_dir", str(module / "dimmed")]
    evaluate = ["evaluate", "--model_name_or_path", "pocket:clean", "--datasets", "pocket:base", "--attacks"]
    evaluate += [str(module / "dimmed"), "--class_names", *FEW_CLASSES, "--test_images_per_class", "1"]
    evaluate += ["--output_dir", str(module / "table")]
    allowed = ["--allow_triggers", NAME]
    assert main(poison) == 2 and "own_trigger_module" not in sys.modules
    assert main(poison + allowed) == 0
    assert read_attack(str(module / "dimmed")).trigger.share == 0.25
    TRIGGERS.pop(NAME)
    capsys.readouterr()
    assert main(evaluate) == 2
    assert f"--allow_triggers {NAME}" in capsys.readouterr().err
    assert main(evaluate + allowed) == 0
    assert isinstance(Attack(TRIGGERS[NAME](), "dog").as_dict(), dict)
