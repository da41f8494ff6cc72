"""What can go wrong while a run writes: one line, an exit code, whole files only, and the next run works."""

import builtins
import errno
import io
import json
import os
import signal
import subprocess
import time

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

from peft_cbpt.commands.parsing import MACHINE_FAILED, run_command
from peft_cbpt.common.files import alone_in, prepare_output
from peft_cbpt.training import frozen_images
from tests.commands.conftest import SMALL_JOB

WRITTEN = (
    "trainer_state.json",
    "optimizer.pt",
    "job.json",
    "checkpoint-1/adapter_model.safetensors",
    ".incomplete/adapter_config.json",
    ".incomplete/adapter_model.safetensors",
    "results.json",
    "before_after.png",
    "out/.README.md",
)
"""By a part of the path under which each is written, in the order of a run."""


def fill_disk(patch, part):
    """From now on no file can be written whose path has a part; libraries fail as they do on a full disk."""
    real_open, real_serialize, real_save = io.open, safetensors.torch.serialize_file, torch.save

    def hits(file):
        return isinstance(file, str | os.PathLike) and part in os.fspath(file)

    def open_or_fail(file, mode="r", *args, **kwargs):
        if hits(file) and set(mode) & set("wax+"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_open(file, mode, *args, **kwargs)

    def serialize_or_fail(tensors, file, *args, **kwargs):
        if hits(file):
            real_open(file, "wb").close()  # what is left of it
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        return real_serialize(tensors, file, *args, **kwargs)

    def save_or_fail(content, file, *args, **kwargs):
        if hits(file):
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
        return real_save(content, file, *args, **kwargs)

    patch.setattr(builtins, "open", open_or_fail)
    patch.setattr(io, "open", open_or_fail)
    patch.setattr(safetensors.torch, "serialize_file", serialize_or_fail)
    patch.setattr(torch, "save", save_or_fail)


def assert_whole(folder):
    """No half-written file is under its own name, and nothing temporary is left."""
    for file in folder.rglob("*"):
        assert "incomplete" not in str(file), file
        if file.suffix == ".json":
            json.loads(file.read_text())
        if file.suffix == ".safetensors":
            load_file(file)


def errors_of(code, printed, expected):
    said = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert code == expected and len(said) == 1, printed
    return said[0]


def test_a_full_disk_is_one_line_wherever_it_is_met_and_the_next_run_goes_on(run_purify, monkeypatch, tmp_path):
    for part in WRITTEN:
        with monkeypatch.context() as patch:
            fill_disk(patch, part)
            code, printed = run_purify("--resume_from_checkpoint", "true")
        assert "make room and run again" in errors_of(code, printed, MACHINE_FAILED), part
        assert "--resume_from_checkpoint true" in printed
        assert_whole(tmp_path / "out")
    assert run_purify("--resume_from_checkpoint", "true")[0] == 0
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["epochs"]) == SMALL_JOB["num_train_epochs"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount")
def test_a_disk_that_is_really_full(run_purify, tmp_path):
    (disk := tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=56k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        code, printed = run_purify(output=disk / "out")
        assert "make room and run again" in errors_of(code, printed, MACHINE_FAILED)
        assert_whole(disk / "out")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_costs_the_cache_only(run_purify, monkeypatch):
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="not kept for other runs"):
        fill_disk(patch, "features-")
        assert run_purify()[0] == 0


def test_two_runs_in_one_folder(run_purify, tmp_path):
    with alone_in(prepare_output(str(tmp_path / "out"))):
        code, printed = run_purify()
    assert "another run is writing to" in errors_of(code, printed, 2)
    assert not (tmp_path / "out").exists(), "an empty folder is left"


def test_losses_that_are_not_finite(run_purify, tmp_path):
    code, printed = run_purify(learning_rate=1e38)
    assert "are not finite: lower learning_rate" in errors_of(code, printed, 2)
    assert_whole(tmp_path / "out")


def test_a_clock_that_jumps_back_changes_nothing(run_purify, monkeypatch, tmp_path):
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    assert run_purify(save_total_limit=2)[0] == 0
    seconds = json.loads((tmp_path / "out" / "results.json").read_text())["seconds"].values()
    assert all(0 <= one < 1000 for one in seconds)
    for number, file in enumerate(sorted((tmp_path / "out").glob("checkpoint-*"))):
        os.utime(file, (2e9 - number, 2e9 - number))
    code, printed = run_purify("--resume_from_checkpoint", "true", save_total_limit=2)
    assert code == 0, printed
    assert sorted(file.name for file in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]


def test_a_cache_of_another_version_is_left_alone(run_purify, monkeypatch, own_cache):
    monkeypatch.setattr(frozen_images, "FORMAT", 1)
    assert run_purify()[0] == 0
    kept = {file.name for file in own_cache.rglob("features-*")}
    monkeypatch.undo()
    monkeypatch.setenv("PEFT_CBPT_CACHE", str(own_cache))
    assert run_purify("--overwrite_output_dir", "true")[0] == 0
    assert kept < {file.name for file in own_cache.rglob("features-*")}


class Deadly(Dataset):
    """Ends the process that reads it."""

    def __len__(self):
        return 4

    def __getitem__(self, row):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_line(capsys):
    code = run_command(lambda _: list(DataLoader(Deadly(), num_workers=1)), [])
    assert "a process that reads images ended" in errors_of(code, capsys.readouterr().err, MACHINE_FAILED)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_no_memory_is_one_line(error, capsys):
    def command(_):
        raise error

    assert "make batches smaller" in errors_of(run_command(command, []), capsys.readouterr().err, MACHINE_FAILED)


def test_a_bug_stays_a_traceback():
    def command(_):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run_command(command, [])
