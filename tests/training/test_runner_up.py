from types import SimpleNamespace

import pytest
import torch

from peft_cbpt.features.bank import FeatureBank
from peft_cbpt.features.cache import FeatureCache
from peft_cbpt.method.inversion import InversionSettings
from peft_cbpt.training.runner_up import RunnerUpTriggers

LABELS = torch.arange(6)


class Recorded(RunnerUpTriggers):
    """Notes the pairs of every batch instead of inverting them."""

    def invert(self, rows, pseudo_targets):
        self.batches.append(list(zip(rows.tolist(), pseudo_targets.tolist(), strict=True)))
        return torch.stack([rows, pseudo_targets], 1).float()


@pytest.fixture
def triggers():
    bank = FeatureBank(torch.eye(6), LABELS, [])
    made = Recorded(SimpleNamespace(cache=FeatureCache(None, 1), key={}, bank=bank, batch_size=4), InversionSettings())
    made.batches = []
    return made


def classify_as(*second):
    """Logits of which the label's is the largest and those of `second` the next."""
    logits = 2.0 * torch.eye(6)
    logits[torch.arange(6), torch.tensor(second)] += 1
    return lambda rows: logits[rows]


def test_an_epoch_is_inverted_at_its_start_in_full_batches_and_misses_when_they_are_seen(triggers):
    before, after = classify_as(1, 2, 3, 4, 5, 0), classify_as(1, 2, 3, 4, 5, 1)
    triggers.start_epoch(5, before)
    assert [len(batch) for batch in triggers.batches] == [4, 2]
    rows = torch.tensor([0, 5])
    features, targets = triggers.perturbed_features(rows, after(rows), 5)
    assert targets.tolist() == [1, 1] and features.tolist() == [[0, 1], [5, 1]]
    assert triggers.batches[2:] == [[(5, 1)]]


def test_a_hit_is_a_pair_known_before_the_epoch(triggers):
    triggers.start_epoch(5, classify_as(1, 2, 3, 4, 5, 0))
    assert triggers.epoch_figures([(row, (row + 1) % 6) for row in range(6)]) == {"cache_hit_rate": 0, "inversions": 6}
    triggers.start_epoch(6, classify_as(1, 2, 3, 4, 5, 1))
    figures = triggers.epoch_figures([(0, 1), (1, 2), (2, 3), (5, 1)])
    assert figures == {"cache_hit_rate": pytest.approx(0.75), "inversions": 1}
