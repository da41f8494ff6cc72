import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from peft_cbpt.clip.loading import LoadedCLIP, load_clip
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.pocket.dataset import pocket_dataset
from peft_cbpt.pocket.model import resolve_model

FEW_CLASSES = ["banana", "lemon", "dog", "pizza", "rocket", "chair"]


@pytest.fixture
def poisoned_clip() -> LoadedCLIP:
    """A fresh copy of the shipped pocket CLIP with the BadNet backdoor."""
    return load_clip(resolve_model("pocket:badnet"))


@pytest.fixture
def few_shots(poisoned_clip) -> LabelledImages:
    """Three clean images of each of six classes."""
    return LabelledImages(pocket_dataset("base", "train", 3, FEW_CLASSES), poisoned_clip.image_processor)
