"""What the Trainer logs reaches the trackers of `report_to`; everything stays on this machine."""

import json

import pytest

from tests.training.test_cbpt_trainer import make_trainer

EPOCHS = {"num_train_epochs": 2, "inversion_steps": 1}
LOGGED = {"loss_bn", "clean_accuracy", "learning_rate", "epoch"}
ADVERSARIAL = {"loss_adv", "loss_align", "inversion_success", "cache_hit_rate"}


@pytest.fixture
def history(poisoned_clip, few_shots, tmp_path):
    """Train for one epoch of prompt warm-up and one adversarial epoch; returns what the trainer logged."""

    def train(tracker):
        trainer = make_trainer(poisoned_clip, few_shots, tmp_path / "out", report_to=[tracker], **EPOCHS)
        trainer.train()
        epochs = [entry for entry in trainer.state.log_history if "loss_bn" in entry]
        assert len(epochs) == 2 and LOGGED <= epochs[0].keys() and LOGGED | ADVERSARIAL <= epochs[1].keys()
        return epochs

    return train


def assert_reached(tracked, epochs):
    """Every number of every epoch is among what a tracker has, a list of values by name."""
    for name in LOGGED | ADVERSARIAL:
        expected = [entry[name] for entry in epochs if name in entry]
        found = tracked[f"train/{name}"]
        assert found[: len(expected)] == pytest.approx(expected, rel=1e-5), name


def test_tensorboard(history, tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    epochs = history("tensorboard")
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    events = accumulators.EventAccumulator(str(folder)).Reload()
    assert_reached({tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}, epochs)


def test_trackio(history, tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    from trackio import sqlite_storage, utils

    for module in (sqlite_storage, utils):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    epochs = history("trackio")
    (run,) = sqlite_storage.SQLiteStorage.get_runs("huggingface")
    logs = sqlite_storage.SQLiteStorage.get_logs("huggingface", run)
    names = {name for entry in logs for name in entry}
    assert_reached({name: [entry[name] for entry in logs if name in entry] for name in names}, epochs)


def test_wandb_offline(history, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    epochs = history("wandb")
    summary = dict(wandb.run.summary)
    wandb.finish()
    assert_reached({name: [value] for name, value in summary.items()}, epochs[1:])
    (recorded,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = recorded.read_bytes()
    assert all(f"train/{name}".encode() in content for name in LOGGED | ADVERSARIAL)
    assert json.dumps(epochs[0]["loss_bn"])[:8].encode() in content
