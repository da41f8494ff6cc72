import os
import tempfile
from dataclasses import replace

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from peft_cbpt.clip.loading import LoadedCLIP, load_clip
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.detection import families, ladder, rounds, suspects
from peft_cbpt.pocket.dataset import pocket_dataset
from peft_cbpt.pocket.model import resolve_model
from peft_cbpt.training import universal_features

_CACHE = tempfile.TemporaryDirectory(prefix="peft_cbpt_tests_")
os.environ["PEFT_CBPT_CACHE"] = _CACHE.name  # for fixtures that outlive a test

SOME = {("image-wide", 1), ("patch", 1), ("patch", 3), ("pattern", 0)}
ALL_ROUNDS = rounds.MOST_ROUNDS
rounds.CLIMBS = tuple(climb for climb in ladder.CLIMBS if (climb.family, climb.number) in SOME)
rounds.MOST_ROUNDS = 0
"""A purification makes few of its searches, unless a test asks for `all_searches`."""

ALL_CANDIDATES, ALL_STEPS = suspects.MOST_CANDIDATES, universal_features.STEPS
suspects.MOST_CANDIDATES = 1
universal_features.STEPS = 4
"""And few dummy triggers, in few steps, unless it asks for `all_triggers`: they are most of what a small run costs."""

ALL_WAVES = families.Wave.every
families.Wave.every = lambda self, side: ALL_WAVES(replace(self, most=2), side)
"""And few waves, unless it asks for `all_searches`."""

FEW_CLASSES = ["banana", "lemon", "dog", "pizza", "rocket", "chair"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Every test finds an empty disk cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PEFT_CBPT_CACHE", str(folder))
    return folder


@pytest.fixture
def all_triggers(monkeypatch):
    """Dummy triggers are as many and as strong as users have."""
    monkeypatch.setattr(suspects, "MOST_CANDIDATES", ALL_CANDIDATES)
    monkeypatch.setattr(universal_features, "STEPS", ALL_STEPS)


@pytest.fixture
def all_searches(all_triggers, monkeypatch):
    """The scan of a purification is whole, too."""
    monkeypatch.setattr(rounds, "CLIMBS", ladder.CLIMBS)
    monkeypatch.setattr(rounds, "MOST_ROUNDS", ALL_ROUNDS)
    monkeypatch.setattr(families.Wave, "every", ALL_WAVES)


@pytest.fixture
def poisoned_clip() -> LoadedCLIP:
    """A fresh copy of the shipped pocket CLIP with the BadNet backdoor."""
    return load_clip(resolve_model("pocket:badnet"))


@pytest.fixture
def few_shots(poisoned_clip) -> LabelledImages:
    """Three clean images of each of six classes."""
    return LabelledImages(pocket_dataset("base", "train", 3, FEW_CLASSES), poisoned_clip.image_processor)
