import json
import multiprocessing
import os
import signal

import pytest
import torch

from peft_cbpt.common.errors import InputError
from peft_cbpt.features.disk_cache import KEY_FILE, LOCK_FILE, DiskCache, default_cache_dir
from peft_cbpt.features.store import FeatureStore

KEYS, FEATURES = torch.tensor([[0, 5], [1, 6]]), torch.tensor([[1.0, 2], [3, 4]])


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path / "cache", 10**6)


def store(cache, kind="kind", **key):
    return FeatureStore(cache.open(kind, key))


def shards(cache):
    return list(cache.folder.glob("*/*.safetensors"))


def test_missing_names_each_new_key_once():
    kept = FeatureStore()
    kept.add(KEYS, FEATURES)
    asked = torch.tensor([[0, 5], [0, 6], [2, 5], [2, 5], [1, 6]])
    assert kept.missing(asked).tolist() == [1, 2]
    assert kept.look_up(KEYS.flip(0)).tolist() == FEATURES.flip(0).tolist()


def test_features_are_shared_by_key_and_by_nothing_else(cache):
    store(cache, norm="2").add(KEYS, FEATURES)
    again = store(cache, norm="2")
    assert torch.equal(again.look_up(KEYS), FEATURES) and len(again) == 2
    assert len(store(cache, norm="inf")) == 0 and len(store(cache, "other", norm="2")) == 0
    folder = again.folder.path
    assert json.loads((folder / KEY_FILE).read_text()) == {"norm": "2"}
    assert not list(folder.glob("*.incomplete"))


def test_writers_at_the_same_time_keep_both_their_shards(cache):
    one, two = store(cache), store(cache)
    one.add(KEYS, FEATURES)
    two.add(KEYS[1:], FEATURES[1:])
    two.add(KEYS + 10, FEATURES + 10)
    both = store(cache)
    assert torch.equal(both.look_up(torch.cat([KEYS, KEYS + 10])), torch.cat([FEATURES, FEATURES + 10]))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_shard_is_left_out_with_a_warning(cache, damage):
    store(cache).add(KEYS, FEATURES)
    store(cache).add(KEYS + 10, FEATURES)
    hurt, _ = shards(cache)
    content = bytearray(hurt.read_bytes())
    content[-1] ^= 1
    hurt.write_bytes({"cut": content[:-3], "flipped": content, "empty": b""}[damage])
    with pytest.warns(UserWarning, match="damaged"):
        left = store(cache)
    assert len(left) == 2 and len(shards(cache)) == 1


def test_what_was_used_longest_ago_goes_first_and_nothing_in_use(cache):
    for age, name in enumerate(("old", "older", "used")):
        folder = cache.open(name, {})
        FeatureStore(folder).add(KEYS, torch.zeros(2, 1000))
        os.utime(folder.path / LOCK_FILE, (10**9 - age, 10**9 - age))
        if name == "used":
            in_use = folder
    del folder
    small = DiskCache(cache.folder, 20_000)
    assert small.make_room(3_000)
    left = {path.name.split("-")[0] for path in cache.folder.iterdir()}
    assert left == {"old", "used"}
    assert not small.make_room(15_000)
    assert [path for path in cache.folder.iterdir()] == [in_use.path]


def test_a_full_cache_is_not_written_to(cache):
    full = FeatureStore(DiskCache(cache.folder, 100).open("kind", {}))
    with pytest.warns(UserWarning, match="full"):
        full.add(KEYS, torch.zeros(2, 1000))
    assert len(full) == 2 and not shards(cache)


def write_until_killed(folder):
    kept = FeatureStore(DiskCache(folder, 10**9).open("kind", {}))
    for row in range(10**6):
        kept.add(torch.tensor([[row, 0]]), torch.full((1, 8), float(row)))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_writer_leaves_whole_shards(cache):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_until_killed, args=(cache.folder,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    while len(shards(cache)) < 20:
        assert all(writer.is_alive() for writer in writers)
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    left = store(cache)
    rows = torch.tensor(sorted(left.keys()))
    assert torch.equal(left.look_up(rows)[:, 0], rows[:, 0].float())


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--cache_dir"):
        DiskCache(tmp_path / "file" / "cache", 1)


def test_the_default_folder_can_be_set(monkeypatch):
    monkeypatch.setenv("PEFT_CBPT_CACHE", "/somewhere")
    assert str(default_cache_dir()) == "/somewhere"
    monkeypatch.delenv("PEFT_CBPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert str(default_cache_dir()) == "/xdg/peft_cbpt"
