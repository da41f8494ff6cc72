import pytest
import torch
import torch.nn.functional as F

from peft_cbpt.common.errors import InputError
from peft_cbpt.detection.families import Patch, Warp
from peft_cbpt.detection.suspects import Suspect, Suspicion
from peft_cbpt.features.bank import FeatureBank
from peft_cbpt.features.store import FeatureStore
from peft_cbpt.training.universal_features import kinds_against
from peft_cbpt.training.universal_settings import UniversalSettings
from peft_cbpt.training.universal_triggers import EMBEDDED, UniversalTriggers

N, CLASSES, WIDTH = 400, 5, 16


@pytest.fixture
def bank():
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(N, WIDTH, generator=generator), dim=1)
    return FeatureBank(features, torch.arange(N) % CLASSES, [str(row) for row in range(N)])


@pytest.fixture
def names():
    return F.normalize(torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(1)), dim=1)


def suspect(label):
    """The even labels were shown by a patch and a warp too."""
    return Suspect(label, "patch", 0.4, 1e-4, 0.9, () if label % 2 else (Patch(0.1), Warp(0.04)))


def dummies(bank, names, labels, candidates=(), seed=0, **settings):
    """With the features of just those universal triggers that go against the classes aimed at."""
    store = FeatureStore()
    suspicion = Suspicion(list(map(suspect, labels)), list(map(suspect, candidates)))
    for one in suspicion.aims:
        n_kinds = len(kinds_against(one))
        keys = torch.tensor([[row, one.label, kind] for row in range(N) for kind in range(n_kinds)])
        store.add(keys, names[one.label].neg().expand(len(keys), -1))
    return UniversalTriggers(bank, names, suspicion, store, seed, UniversalSettings(**settings))


def changed(bank, features):
    return (features - bank.features).abs().amax(1) > 1e-6


def test_images_are_moved_towards_suspects_and_no_others(bank, names):
    rows = torch.arange(N)
    logits = bank.features @ names.T
    features, targets = dummies(bank, names, [3]).perturbed_features(rows, logits, epoch=0)
    moved = changed(bank, features)
    assert 0.1 < moved.float().mean() < 0.3
    assert targets[moved].eq(3).all() and not moved[bank.labels == 3].any()
    assert (targets != bank.labels).all()
    torch.testing.assert_close(features.norm(dim=1), torch.ones(N))
    universal = moved & (features @ names[3] < -0.99)
    embedded = features[moved & ~universal] @ names[3]
    assert universal.any() and (embedded > (bank.features @ names[3])[moved & ~universal]).all()
    least, most = EMBEDDED
    assert least < most < 1


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_shares_are_those_asked_for(bank, names, share):
    logits, others = bank.features @ names.T, bank.labels != 3
    features, _ = dummies(bank, names, [3], perturbed_share=share).perturbed_features(torch.arange(N), logits, 0)
    assert changed(bank, features)[others].float().mean() == pytest.approx(share, abs=0.08)
    every = dummies(bank, names, [3], perturbed_share=1.0, universal_share=share)
    features, _ = every.perturbed_features(torch.arange(N), logits, 0)
    assert (features @ names[3] < -0.99)[others].float().mean() == pytest.approx(share, abs=0.08)


@pytest.mark.parametrize("wrong", [{"perturbed_share": -0.1}, {"universal_share": float("nan")}])
def test_settings_out_of_range_are_errors(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        UniversalSettings(**wrong)


def test_a_row_gets_the_same_alone_as_in_a_batch_and_something_else_in_the_next_epoch(bank, names):
    triggers, logits = dummies(bank, names, [1, 2]), bank.features @ names.T
    features, targets = triggers.perturbed_features(torch.arange(N), logits, epoch=2)
    rows = torch.tensor([17, 5, 300])
    alone = triggers.perturbed_features(rows, logits[rows], epoch=2)
    assert torch.equal(alone[0], features[rows]) and torch.equal(alone[1], targets[rows])
    assert not torch.equal(triggers.perturbed_features(torch.arange(N), logits, epoch=3)[0], features)
    assert not torch.equal(
        dummies(bank, names, [1, 2], seed=1).perturbed_features(torch.arange(N), logits, 2)[0], features
    )


def test_candidates_are_aimed_at_where_there_is_no_suspect(bank, names):
    logits = bank.features @ names.T
    for labels, aimed in (([], {0, 4}), ([3], {3})):
        triggers = dummies(bank, names, labels, [0, 4])
        features, targets = triggers.perturbed_features(torch.arange(N), logits, epoch=0)
        moved = changed(bank, features)
        assert 0.1 < moved.float().mean() < 0.3 and set(targets[moved].tolist()) == aimed


def test_an_epoch_fetches_what_it_looks_up_and_no_more(bank, names):
    fetched = []

    class Recorder(FeatureStore):
        def fetch(self, keys, device):
            fetched.append(keys)
            self.add(keys, names[keys[:, 1]])

    triggers = UniversalTriggers(bank, names, Suspicion([suspect(2)], []), Recorder(), 0)
    triggers.start_epoch(4, lambda rows: bank.features[rows] @ names.T)
    (keys,) = fetched
    assert 0.05 * N < len(keys) < 0.2 * N and (bank.labels[keys[:, 0]] != 2).all()
    assert set(keys[:, 2].tolist()) == set(range(len(kinds_against(suspect(2)))))
    features, _ = triggers.perturbed_features(torch.arange(N), bank.features @ names.T, 4)
    assert torch.equal((features == names[2]).all(1).nonzero()[:, 0], keys[:, 0])
