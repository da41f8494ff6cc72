"""Where the images of the tests come from: the pocket world, or the photographs."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor

from peft_cbpt.attacks.attack_file import ATTACK_FILE, Attack, read_attack
from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.data.images import LabelledImages, load_labelled_images
from peft_cbpt.pocket.model import resolve_model

SHOTS = 16
TEST_IMAGES = 1200
ALL_NAMES_IMAGES = 960


@dataclass(frozen=True)
class World:
    """Images, pairs and the clean CLIP.

    Args:
        name: Folder of its cells.
        clean: The CLIP that was not poisoned.
        usual: A poisoned model whose trigger is shown to models without one.
        dataset: Where shots and test images are.
        shots_split: Split of the defender's images.
        num_classes: Classes that are given and measured.
        pairs: Where clean pairs are, as options of `FinetuneArguments`.
    """

    name: str
    clean: str
    usual: str
    dataset: str
    shots_split: str
    num_classes: int
    pairs: dict[str, Any] = field(default_factory=dict, hash=False)

    def rows(self, split: str, images_per_class: int, all_names: bool = False) -> datasets.Dataset:
        """Labelled rows of the classes given, or of all there are."""
        return _rows(self, split, images_per_class, all_names)

    def test(self, clip: LoadedCLIP, all_names: bool = False) -> LabelledImages:
        """Test images, as many of every class, or of all classes."""
        rows = self.rows("test", 3 if all_names else 20, all_names)
        return _thinned(rows, ALL_NAMES_IMAGES if all_names else TEST_IMAGES, clip)

    def shots(self, clip: LoadedCLIP, count: int | None = None) -> LabelledImages:
        """The defender's images, drawn at random."""
        return _thinned(self.rows(self.shots_split, SHOTS), count or SHOTS * self.num_classes, clip)

    def class_names(self, all_names: bool = False) -> list[str]:
        """The names of the classes."""
        return list(self.rows("test", 3 if all_names else 20, all_names).features["label"].names)

    def attacks(self, model: str) -> list[Attack]:
        """What a model was poisoned with; for one without a description, the usual attack."""
        place = Path(resolve_model(model))
        if not (place / ATTACK_FILE).is_file():
            return [read_attack(self.usual)]
        return [read_attack(str(file)) for file in (place / ATTACK_FILE, *sorted(place.glob("attack_*.json")))]


@lru_cache(maxsize=4)
def _rows(world: World, split: str, images_per_class: int, all_names: bool) -> datasets.Dataset:
    classes = None if all_names else world.num_classes
    return load_labelled_images(world.dataset, split, num_classes=classes, images_per_class=images_per_class)


def _thinned(rows: datasets.Dataset, count: int, clip: LoadedCLIP) -> LabelledImages:
    images = LabelledImages(rows, clip.image_processor)
    kept = keyed_generator("robustness", count).permutation(len(rows))[:count]
    return images.select(sorted(kept.tolist()))


def pixels_of(images: LabelledImages) -> tuple[Tensor, Tensor, list[str]]:
    """uint8 pixels (N, 3, H, W), labels (N,) and sample ids."""
    rows = [images[place] for place in range(len(images))]
    labels = torch.tensor([row["labels"] for row in rows])
    return torch.stack([row["pixel_values"] for row in rows]), labels, [row["sample_id"] for row in rows]


POCKET = World("pocket", "pocket:clean", "pocket:badnet", "pocket:base", "train", 60)


def photographs(folder: str, usual: str) -> World:
    """The photographs in the folder that `recipes/prepare_photos.py` wrote."""
    pairs = {"pairs_name": folder, "pairs_split": "poisoning"}
    return World("photos", "photos:resnet", usual, folder, "shots", 100, pairs)
