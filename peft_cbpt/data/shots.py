"""The few clean images that a model is purified with, and the images that it is measured on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

import datasets
from transformers import CLIPImageProcessorPil

from peft_cbpt.common.errors import InputError
from peft_cbpt.data.few_shot import sample_few_shots
from peft_cbpt.data.images import LabelledImages, load_labelled_images
from peft_cbpt.data.skipping import Skipped

Images: TypeAlias = str | datasets.Dataset | datasets.DatasetDict | LabelledImages
"""Labelled images: a name (see `data.images.load_labelled_images`), or what is loaded already."""
POCKET_IMAGES_PER_CLASS = 32


@dataclass(kw_only=True)
class LabelledArguments:
    """How labelled images are read."""

    test_split: str = field(default="test", metadata={"help": "Split that is measured on."})
    image_column: str = field(default="image", metadata={"help": "Column of images."})
    label_column: str = field(default="label", metadata={"help": "Column of labels."})
    class_names_file: str | None = field(default=None, metadata={"help": "Names of classes whose labels are numbers."})
    class_names: list[str] | None = field(default=None, metadata={"help": "Classes to keep, in label order."})
    num_classes: int | None = field(default=None, metadata={"help": "Keep the first so many classes."})
    test_images_per_class: int = field(default=20, metadata={"help": "Test images per class the pocket world draws."})

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Any:
        """From keyword arguments of a Python call.

        Raises:
            InputError: for an unknown name.
        """
        if unknown := sorted(set(options) - {one.name for one in fields(cls)}):
            raise InputError(f"unknown setting {unknown[0]!r}; {cls.__name__} has all there are")
        return cls(**options)

    def open(
        self,
        images: Images,
        split: str,
        image_processor: CLIPImageProcessorPil,
        images_per_class: int | None = None,
    ) -> LabelledImages:
        """The images of a split; see `data.images.load_labelled_images`. The pocket world draws `images_per_class`."""
        rows = load_labelled_images(
            one_split(images, split),
            split,
            self.class_names,
            self.num_classes,
            self.image_column,
            self.label_column,
            self.test_images_per_class if images_per_class is None else images_per_class,
            self.class_names_file,
        )
        return LabelledImages(rows, image_processor)


@dataclass(kw_only=True)
class ShotArguments(LabelledArguments):
    """How shots are chosen."""

    dataset_split: str = field(default="train", metadata={"help": "Split the shots are sampled from."})
    num_shots: int = field(default=16, metadata={"help": "Clean images per class."})


@dataclass(frozen=True)
class ShotsAndTest:
    """Shots and test images of the same classes, and shots that were passed over since they cannot be read."""

    shots: LabelledImages
    test: LabelledImages
    class_names: list[str]
    skipped: list[Skipped]


def name_of_images(images: Images) -> str:
    """What records call images: their name, or that they had none."""
    return images if isinstance(images, str) else "(given in Python)"


def one_split(images: Images, split: str) -> str | datasets.Dataset:
    """A name, or the rows of a split; a `Dataset` and `LabelledImages` are one already.

    Raises:
        InputError: if there is no such split, or `images` is nothing of the kind.
    """
    if isinstance(images, datasets.DatasetDict):
        if split not in images:
            raise InputError(f"the DatasetDict has no split {split!r} but {', '.join(map(str, images))}")
        return images[split]
    if isinstance(images, LabelledImages):
        return images.dataset
    if not isinstance(images, str | datasets.Dataset):
        raise InputError(f"images must be a name, a datasets.Dataset or LabelledImages, not {type(images).__name__}")
    return images


def shots_and_test(
    images: Images,
    test_images: Images | None,
    arguments: ShotArguments,
    seed: int,
    image_processor: CLIPImageProcessorPil,
) -> ShotsAndTest:
    """Sample shots and load test images, checked against each other.

    Args:
        images: Where shots come from.
        test_images: What is measured on; by default the test split of `images`, or the rows of a `Dataset` that are no
            shots.
        arguments: Splits, columns and classes.
        seed: Of the choice of shots.
        image_processor: The model's.

    Raises:
        InputError: if either cannot be had.
    """
    if arguments.num_shots < 1:
        raise InputError(f"num_shots must be at least 1, it is {arguments.num_shots}")

    drawn = max(POCKET_IMAGES_PER_CLASS, arguments.num_shots)
    pool = arguments.open(images, arguments.dataset_split, image_processor, drawn)
    names = pool.dataset.features["label"].names
    if test_images is None and not isinstance(images, str | datasets.DatasetDict):
        shots, skipped = sample_few_shots(pool, arguments.num_shots, seed)
        return ShotsAndTest(shots, _others(pool, shots), names, skipped)
    other = images if test_images is None else test_images
    test = replace(arguments, class_names=names, num_classes=None).open(other, arguments.test_split, image_processor)
    shots, skipped = sample_few_shots(pool, arguments.num_shots, seed)
    both = set(shots.dataset["sample_id"]) & set(test.dataset["sample_id"])
    same = other == images if isinstance(images, str) else other is images
    if both and same and not isinstance(images, datasets.DatasetDict):
        raise InputError(
            f"split {arguments.test_split!r} of {name_of_images(images)} holds the training shots themselves: put the "
            "images into train/ and test/ folders, or name another test_split or test_dataset_name"
        )
    return ShotsAndTest(shots, test, names, skipped)


def _others(pool: LabelledImages, shots: LabelledImages) -> LabelledImages:
    chosen = set(shots.dataset["sample_id"])
    rows = [row for row, sample_id in enumerate(pool.dataset["sample_id"]) if sample_id not in chosen]
    if not rows:
        raise InputError("all images are shots, so that none is left to measure on: give test_images, or fewer shots")
    return pool.select(rows)


def few_labelled(
    images: Any, names: Sequence[str], split: str, image_column: str, image_processor: CLIPImageProcessorPil
) -> LabelledImages | None:
    """Two images a class with their labels, if they have some that `names`, or names of their own, are of."""
    if not isinstance(images, str | datasets.Dataset | LabelledImages):
        return None
    try:
        rows = load_labelled_images(
            one_split(images, split), split, names or None, image_column=image_column, images_per_class=2
        )
    except InputError:
        return None
    return LabelledImages(rows, image_processor)
