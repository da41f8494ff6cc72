"""What can go wrong while an encoder is repaired: as in `test_faults`, for the first of `purify`'s two stages."""

import json
import os
import runpy
import time

import pytest
import yaml

from peft_cbpt.cli import main
from peft_cbpt.commands.parsing import MACHINE_FAILED, run_command
from peft_cbpt.common.files import alone_in, prepare_output
from tests.commands.conftest import SMALL_JOB
from tests.commands.test_faults import assert_whole, errors_of, fill_disk

TINY = {"num_shots": 2, "test_images_per_class": 2, "only": "encoder", "attacks": []}
TINY |= {"encoder_steps": 2, "encoder_batch_size": 4, "encoder_rank": 2, "encoder_kinds": ["wave"]}
WRITTEN = (
    "job.json",
    "checkpoint-2/adapter_model.safetensors",
    "trainer_state.json",
    "triggers.safetensors",
    "encoder/.incomplete/adapter_model.safetensors",
)
"""By a part of the path under which each is written in the stage."""
RECIPE = runpy.run_path("recipes/purify_encoder.py")["main"]


@pytest.fixture
def run(tmp_path, capsys):
    """Run `peft-cbpt purify --only encoder` with some settings changed; returns exit code and stderr."""

    def run(*options, **settings):
        job = {name: value for name, value in SMALL_JOB.items() if name != "num_train_epochs"}
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(job | TINY | {"output_dir": str(tmp_path / "out")} | settings))
        code = main(["purify", "--config", str(config), *options])
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def recipe(tmp_path, capsys):
    """Run `recipes/purify_encoder.py` on a few images; returns exit code and stderr."""
    words = (
        "--num_images 8 --kinds wave --search_images 2 --per_device_train_batch_size 4 --save_steps 1 --max_steps 2"
    )
    fixed = [*words.split(), "--report_to", "none", "--output_dir", str(tmp_path / "out")]

    def run(*options):
        code = run_command(RECIPE, [*fixed, *options])
        return code, capsys.readouterr().err

    return run


def test_a_full_disk_is_one_line_wherever_it_is_met_and_the_next_run_goes_on(run, monkeypatch, tmp_path):
    for part in WRITTEN:
        with monkeypatch.context() as patch:
            fill_disk(patch, part)
            code, printed = run("--resume_from_checkpoint", "true")
        assert "make room and run again" in errors_of(code, printed, MACHINE_FAILED), part
        assert "--resume_from_checkpoint true" in printed
        assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert run("--resume_from_checkpoint", "true")[0] == 0
    assert_whole(tmp_path / "out")


def test_losses_that_are_not_finite_end_the_stage_and_leave_no_adapter(run, tmp_path):
    code, printed = run(encoder_learning_rate=1e38, encoder_steps=4)
    assert "the encoder's epoch" in (said := errors_of(code, printed, 2)) and "are not finite" in said
    assert not list((tmp_path / "out").rglob("adapter_config.json"))


def test_a_clock_that_jumps_back_changes_nothing(run, monkeypatch, tmp_path):
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    assert run()[0] == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert all(0 <= one < 1000 for one in results["seconds"].values())


def test_a_record_of_another_version_starts_the_stage_anew(run, tmp_path):
    assert run()[0] == 0
    (tmp_path / "out" / "encoder" / "job.json").write_text('{"version": 0')
    code, printed = run("--resume_from_checkpoint", "true")
    assert code == 0, printed
    assert json.loads((tmp_path / "out" / "results.json").read_text())["encoder_epochs"]


def test_the_recipe_goes_on_where_the_message_says_so(recipe, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fill_disk(patch, ".incomplete/adapter_model.safetensors")
        code, printed = recipe()
    assert "make room and run again" in errors_of(code, printed, MACHINE_FAILED)
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    os.remove(tmp_path / "out" / "checkpoint-2" / "trainer_state.json")  # as a kill leaves it
    code, printed = recipe("--resume_from_checkpoint", "true")
    assert code == 0, printed
    assert_whole(tmp_path / "out")


def test_two_runs_of_the_recipe_and_no_checkpoint_are_one_line(recipe, tmp_path):
    with alone_in(prepare_output(str(tmp_path / "out"))):
        assert "another run is writing to" in errors_of(*recipe(), 2)
    assert "no whole checkpoint of an encoder" in errors_of(*recipe("--resume_from_checkpoint", "/no/such"), 2)
