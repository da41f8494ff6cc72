import json
import multiprocessing
import os
import signal
import time

import pytest
import torch
from safetensors import safe_open

from peft_cbpt.common import files
from peft_cbpt.common.cache_dir import default_cache_dir
from peft_cbpt.common.errors import InputError
from peft_cbpt.features import store as module
from peft_cbpt.features.cache import FeatureCache
from peft_cbpt.features.store import FeatureStore, fill

KEYS, FEATURES = torch.tensor([[0, 5], [1, 6]]), torch.tensor([[1.0, 2], [3, 4]])


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "cache", 10**6)


def kept_features(cache, kind="kind", **key):
    store = cache.open(kind, key)
    store.add(KEYS, FEATURES)
    store.save()
    return store


def test_missing_names_each_new_key_once():
    kept = FeatureStore()
    kept.add(KEYS, FEATURES)
    asked = torch.tensor([[0, 5], [0, 6], [2, 5], [2, 5], [1, 6]])
    assert kept.missing(asked).tolist() == [1, 2]
    assert kept.look_up(KEYS.flip(0)).tolist() == FEATURES.flip(0).tolist()


def test_features_are_shared_by_key_and_by_nothing_else(cache):
    kept_features(cache, norm="2")
    again = cache.open("kind", {"norm": "2"})
    assert torch.equal(again.look_up(KEYS), FEATURES) and len(again) == 2
    assert len(cache.open("kind", {"norm": "inf"})) == 0 and len(cache.open("other", {"norm": "2"})) == 0
    with safe_open(again.file, "pt") as file:
        assert json.loads(file.metadata()["key"]) == {"norm": "2"}
    assert [path.name for path in cache.folder.iterdir()] == [again.file.name]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept_features(FeatureCache(None, 1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_file_is_computed_anew_with_a_warning(cache, damage):
    file = kept_features(cache).file
    content = file.read_bytes()
    file.write_bytes({"cut": content[:-3], "empty": b"", "other": b"<html>" * 9}[damage])
    with pytest.warns(UserWarning, match="damaged"):
        left = cache.open("kind", {})
    assert len(left) == 0
    kept_features(cache)
    assert len(cache.open("kind", {})) == 2


def test_what_was_used_longest_ago_makes_room(cache):
    for age, name in enumerate(("old", "older", "used")):
        store = cache.open(name, {})
        store.add(KEYS, torch.zeros(2, 1000))
        store.save()
        os.utime(store.file, (10**9 - age, 10**9 - age))
    small = FeatureCache(cache.folder, 20_000)
    assert len(small.open("used", {})) == 2
    assert {path.name.split("-")[0] for path in cache.folder.iterdir()} == {"old", "used"}


def test_a_disk_that_is_full_costs_the_file_and_nothing_else(cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.warns(UserWarning, match="No space left"):
        store = kept_features(cache)
    assert torch.equal(store.look_up(KEYS), FEATURES) and not list(cache.folder.iterdir())


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(wrong):
    with pytest.raises(InputError, match="not finite"):
        FeatureStore().add(KEYS, torch.tensor([[1.0, 2], [wrong, 3]]))


def write_until_killed(folder):
    module.SAVE_EVERY = 0.0
    store = FeatureCache(folder, 10**9).open("kind", {})
    rows = torch.arange(10**6)[:, None]
    fill(store, rows, lambda batch: batch.float().expand(-1, 8), 4, "features")


def test_a_killed_writer_leaves_a_whole_file(cache):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_until_killed, args=(cache.folder,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    while not list(cache.folder.glob("*.safetensors")):
        assert all(writer.is_alive() for writer in writers)
    time.sleep(0.2)
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    left = cache.open("kind", {})
    rows = torch.tensor(sorted(left.keys()))
    assert len(left) >= 4 and torch.equal(left.look_up(rows)[:, 0], rows[:, 0].float())


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--feature_cache_dir"):
        FeatureCache(tmp_path / "file" / "cache", 1)


def test_the_default_folder_can_be_set(monkeypatch):
    monkeypatch.setenv("PEFT_CBPT_CACHE", "/somewhere")
    assert str(default_cache_dir()) == "/somewhere"
    monkeypatch.delenv("PEFT_CBPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert str(default_cache_dir()) == "/xdg/peft_cbpt"
