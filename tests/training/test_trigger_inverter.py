import pytest
import torch

from peft_cbpt.features.bank import FeatureBank
from peft_cbpt.features.store import FeatureStore
from peft_cbpt.method.inversion import InversionSettings
from peft_cbpt.training.trigger_inverter import TriggerInverter


class Recorded(TriggerInverter):
    """Notes the pairs of every batch instead of inverting them; dies before batch number `dies`."""

    def invert(self, rows, pseudo_targets):
        if len(self.batches) == self.dies:
            raise KeyboardInterrupt
        self.batches.append(list(zip(rows.tolist(), pseudo_targets.tolist(), strict=True)))
        return torch.stack([rows, pseudo_targets], 1).float()


def recorded(store, dies=None):
    bank = FeatureBank(torch.eye(50), torch.arange(50), [])
    inverter = Recorded(None, None, bank, InversionSettings(), batch_size=8, store=store)
    inverter.batches, inverter.dies = [], dies
    return inverter


def pairs(first, n):
    return torch.tensor([[row, row + 1] for row in range(first, first + n)])


@pytest.mark.parametrize(("n", "sizes"), [(3, [8]), (8, [8]), (10, [8, 8])])
def test_batches_are_filled_up_with_the_first_pairs_ahead(n, sizes):
    inverter = recorded(FeatureStore())
    inverter.prefetch(pairs(0, n), pairs(20, 30))
    assert [len(batch) for batch in inverter.batches] == sizes
    expected = pairs(20, sum(sizes) - n).tolist() + pairs(0, n).tolist()
    assert [list(pair) for batch in inverter.batches for pair in batch] == expected
    found = inverter.perturbed_features(*pairs(0, n).T)
    assert torch.equal(found, pairs(0, n).float())


def test_what_is_kept_is_neither_inverted_again_nor_counted():
    inverter = recorded(FeatureStore())
    inverter.store.add(pairs(0, 2), torch.zeros(2, 2))
    inverter.store.add(pairs(20, 3), torch.zeros(3, 2))
    inverter.prefetch(pairs(0, 5), pairs(20, 30))
    assert inverter.batches == [[*map(tuple, pairs(23, 5).tolist()), *map(tuple, pairs(2, 3).tolist())]]
    inverter.prefetch(pairs(0, 5), pairs(20, 30))
    assert len(inverter.batches) == 1


@pytest.mark.parametrize("dies", [1, 2])
def test_after_a_kill_the_same_batches_are_computed(dies):
    whole = recorded(FeatureStore())
    whole.prefetch(pairs(0, 19), pairs(20, 30))
    store = FeatureStore()
    killed, resumed = recorded(store, dies), recorded(store)
    with pytest.raises(KeyboardInterrupt):
        killed.prefetch(pairs(0, 19), pairs(20, 30))
    resumed.prefetch(pairs(0, 19), pairs(20, 30))
    assert killed.batches + resumed.batches == whole.batches and len(whole.batches) == 3
