import torch
from safetensors.torch import load_file, save_file

from peft_cbpt.purification.feature_bank import PerturbedFeatureCache


def filled_cache():
    cache = PerturbedFeatureCache()
    cache.add(torch.tensor([0, 1]), torch.tensor([5, 6]), torch.tensor([[1.0, 2], [3, 4]]))
    return cache


def test_missing_names_each_new_pair_once():
    missing = filled_cache().missing(torch.tensor([0, 0, 2, 2, 1]), torch.tensor([5, 6, 5, 5, 6]))
    assert missing.tolist() == [1, 2]


def test_look_up_gives_what_was_added():
    found = filled_cache().look_up(torch.tensor([1, 0, 1]), torch.tensor([6, 5, 6]))
    assert found.tolist() == [[3, 4], [1, 2], [3, 4]]


def test_entries_survive_a_file(tmp_path):
    for cache in (filled_cache(), PerturbedFeatureCache()):
        save_file(cache.state_dict(), tmp_path / "cache.safetensors")
        restored = PerturbedFeatureCache()
        restored.load_state_dict(load_file(tmp_path / "cache.safetensors"), torch.device("cpu"))
        assert restored.rows_of == cache.rows_of
        assert [f.tolist() for f in restored.features] == [f.tolist() for f in cache.features]
