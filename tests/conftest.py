import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from peft_cbpt.clip.loading import LoadedCLIP, load_clip
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.detection import ladder, rounds
from peft_cbpt.pocket.dataset import pocket_dataset
from peft_cbpt.pocket.model import resolve_model

_CACHE = tempfile.TemporaryDirectory(prefix="peft_cbpt_tests_")
os.environ["PEFT_CBPT_CACHE"] = _CACHE.name  # for fixtures that outlive a test

SOME = {("image-wide", 1), ("patch", 1), ("patch", 3), ("pattern", 0)}
ALL_ROUNDS = rounds.MOST_ROUNDS
rounds.CLIMBS = tuple(climb for climb in ladder.CLIMBS if (climb.family, climb.number) in SOME)
rounds.MOST_ROUNDS = 0
"""A purification makes few of its searches, unless a test asks for `all_searches`."""

FEW_CLASSES = ["banana", "lemon", "dog", "pizza", "rocket", "chair"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Every test finds an empty disk cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PEFT_CBPT_CACHE", str(folder))
    return folder


@pytest.fixture
def all_searches(monkeypatch):
    """The scan of a purification is whole."""
    monkeypatch.setattr(rounds, "CLIMBS", ladder.CLIMBS)
    monkeypatch.setattr(rounds, "MOST_ROUNDS", ALL_ROUNDS)


@pytest.fixture
def poisoned_clip() -> LoadedCLIP:
    """A fresh copy of the shipped pocket CLIP with the BadNet backdoor."""
    return load_clip(resolve_model("pocket:badnet"))


@pytest.fixture
def few_shots(poisoned_clip) -> LabelledImages:
    """Three clean images of each of six classes."""
    return LabelledImages(pocket_dataset("base", "train", 3, FEW_CLASSES), poisoned_clip.image_processor)
