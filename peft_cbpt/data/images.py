"""Labelled images from wherever they are: the pocket world, the ImageNet family, any folder, file or Hub dataset."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
from torch import Tensor
from torch.utils.data import Dataset
from transformers import CLIPImageProcessorPil

from peft_cbpt.common.errors import InputError
from peft_cbpt.data.columns import Rows, find_column, with_images, with_sample_ids
from peft_cbpt.data.decoding import UnreadableImage, model_pixels, read_image
from peft_cbpt.data.imagenet import HubCopy, find_variant
from peft_cbpt.data.labels import (
    LabelSpace,
    kept_classes,
    label_key,
    label_reader,
    read_class_names,
    read_label,
    space_of_feature,
    space_of_names,
)
from peft_cbpt.data.skipping import Skipped
from peft_cbpt.data.sources import open_hub_copy, open_source, row_prefix
from peft_cbpt.pocket.atlas import class_names as pocket_class_names
from peft_cbpt.pocket.dataset import pocket_dataset

logger = logging.getLogger(__name__)
GIVEN = "the dataset given"
KEPT_BYTES = 3 * 10**9
"""16,000 images of 224 pixels a side take 2.4 GB."""


def load_labelled_images(
    name: str | datasets.Dataset,
    split: str,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    image_column: str = "image",
    label_column: str = "label",
    images_per_class: int = 20,
    class_names_file: str | None = None,
) -> datasets.Dataset:
    """Load a labelled image dataset.

    Args:
        name: `pocket:DOMAIN`; a member of the ImageNet family (`imagenet-v2`, `imagenet-v2:PATH`, or a Hub id); or
            anything that `sources.open_source` takes; or rows that are loaded already.
        split: Name of the split, which loaded rows have been chosen by.
        class_names: The classes to keep, in label order; all of the dataset's by default.
        num_classes: Keep only the first so many classes.
        image_column: Column of images; `image` also means a webdataset's `jpg`, `png` or `webp`.
        label_column: Column of labels; `label` also means a webdataset's `cls`.
        images_per_class: How many images of a class the pocket world draws.
        class_names_file: Names of the classes, when labels are numbers or codes; see `labels.read_class_names`.

    Returns:
        Rows of `image`, `label` (index into the classes kept) and `sample_id`.

    Raises:
        InputError: if there is no such dataset, split, column or class, or a class without images.
    """
    if isinstance(name, str) and name.startswith("pocket:"):
        kept = kept_classes(pocket_class_names(), class_names, num_classes, name)
        return pocket_dataset(name.removeprefix("pocket:"), split, images_per_class, kept)
    source = open_labelled(name, split, image_column, label_column, class_names_file)
    name = name if isinstance(name, str) else GIVEN
    rows: Any = source.rows
    feature, written = rows.features[source.label_column], list(rows[source.label_column])
    space = source.space or _own_space(feature, written, name, source.label_column)
    kept = kept_classes(space.class_names, class_names, num_classes, f"split {split!r} of {name}")
    numbers, first_row = (
        label_reader(feature, space, name),
        {label: row for row, label in reversed([*enumerate(written)])},
    )
    index_of = {label: read_label(label, numbers, space, str(row), name) for label, row in first_row.items()}
    labels = [index_of[label] for label in written]
    new_label = {list(space.class_names).index(kept_name): label for label, kept_name in enumerate(kept)}
    chosen = [row for row, label in enumerate(labels) if label in new_label]
    present = {space.class_names[label] for label in labels}
    if empty := sorted(set(kept) - present):
        raise InputError(f"class {empty[0]!r} has no images in split {split!r} of {name}: add some or leave it out")
    if others := sorted(present - set(kept)):
        shown = ", ".join(map(repr, others[:5])) + (" ..." if len(others) > 5 else "")
        logger.warning("split %r of %s: left out %d classes that are not kept: %s", split, name, len(others), shown)
    rows = rows.select_columns([source.image_column, "sample_id"])
    if source.image_column != "image":
        rows = rows.rename_column(source.image_column, "image")
    # before `select`, and with its feature: `datasets` would otherwise write all images anew
    relabelled = [new_label.get(label, 0) for label in labels]
    rows = rows.add_column("label", relabelled, feature=datasets.ClassLabel(names=kept))
    return rows if len(chosen) == len(rows) else rows.select(chosen)


@dataclass(frozen=True)
class LabelledSource:
    """One split of a labelled dataset as it is: images encoded, labels as written."""

    rows: Rows
    space: LabelSpace | None
    """The classes, if they are known without a look at the labels."""
    image_column: str
    label_column: str
    row_prefix: str
    """Of the sample ids of rows that have none of their own."""


def open_labelled(
    name: str | datasets.Dataset,
    split: str,
    image_column: str,
    label_column: str,
    class_names_file: str | None,
    streaming: bool = False,
) -> LabelledSource:
    """Open any dataset but the pocket world's; arguments as of `load_labelled_images` and `sources.open_source`."""
    space = read_class_names(class_names_file) if class_names_file else None
    place: Any = name
    if isinstance(name, datasets.Dataset):
        rows, prefix, name = with_sample_ids(name.with_format(None), "rows"), "rows", GIVEN
    elif found := find_variant(name):
        variant, place = found
        space = space or variant.label_space
        if isinstance(place, HubCopy):
            rows = open_hub_copy(place, split, streaming)
            image_column, label_column = place.image_column, place.label_column
            prefix = split if place.is_tars else place.splits[split]
        else:
            rows, prefix = open_source(place, split, streaming), row_prefix(place, split)
            known = [copy.label_column for copy in variant.copies]
            columns = rows.column_names or []
            label_column = next((one for one in (label_column, *known) if one in columns), label_column)
    else:
        rows, prefix = open_source(name, split, streaming), row_prefix(name, split)
    rows, image_column = with_images(rows, image_column, place if isinstance(place, str) else name, split)
    label_column = find_column(rows.column_names or list(next(iter(rows))), label_column, name)
    return LabelledSource(rows, space, image_column, label_column, prefix)


def _own_space(feature: Any, labels: Sequence[Any], dataset_name: str, label_column: str) -> LabelSpace:
    """The classes as a dataset names them: a `ClassLabel`, or words, which are sorted."""
    words = all(isinstance(label, str) and not label_key(label).isdecimal() for label in labels)
    if words and not isinstance(feature, datasets.ClassLabel):
        return space_of_names(sorted(set(labels) - {""}), dataset_name)
    return space_of_feature(feature, dataset_name, label_column)


class LabelledImages(Dataset):
    """Rows of `load_labelled_images` as the trainer takes them.

    `pixel_values` is uint8 (3, H, W) at the model's resolution, not normalised; `labels` an int; `sample_id` a string.
    A row whose image cannot be read raises `UnreadableImage`; `few_shot.sample_few_shots` and `evaluation` skip it.

    Args:
        dataset: The rows.
        image_processor: The model's.
        kept: Pixels by row, of those that were read before; `KEPT_BYTES` of them stay in memory. None keeps none.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        image_processor: CLIPImageProcessorPil,
        kept: dict[int, Tensor] | None = None,
    ):
        self.dataset, self.image_processor, self.kept = dataset, image_processor, kept
        if isinstance(dataset, datasets.Dataset):
            self.dataset, _ = with_images(dataset, "image", GIVEN)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = int(index)
        if self.kept is None:
            return labelled_row(self.dataset[row], self.image_processor)
        if row not in self.kept:
            read = labelled_row(self.dataset[row], self.image_processor)
            if (len(self.kept) + 1) * read["pixel_values"].nbytes <= KEPT_BYTES:
                self.kept[row] = read["pixel_values"]
            return read
        label, sample_id = self._told[row]
        return {"pixel_values": self.kept[row], "labels": label, "sample_id": sample_id}

    @cached_property
    def _told(self) -> list[tuple[int, str]]:
        return list(zip(self.dataset["label"], self.dataset["sample_id"], strict=True))

    def keeping(self) -> "LabelledImages":
        """The same rows, each read once."""
        return LabelledImages(self.dataset, self.image_processor, {})

    def select(self, rows: Sequence[int]) -> "LabelledImages":
        """Some of the rows, in the order given."""
        kept = (
            None
            if self.kept is None
            else {place: self.kept[row] for place, row in enumerate(rows) if row in self.kept}
        )
        return LabelledImages(self.dataset.select(rows), self.image_processor, kept)

    def without(self, skipped: Sequence[Skipped]) -> "LabelledImages":
        """The rows that were not skipped."""
        left_out = {one.sample_id for one in skipped}
        ids = self.dataset["sample_id"]
        return self.select([row for row, sample_id in enumerate(ids) if sample_id not in left_out])


def labelled_row(row: dict[str, Any], image_processor: CLIPImageProcessorPil) -> dict[str, Any]:
    """A row of `image`, `label` and `sample_id` with its pixels; raises `UnreadableImage` with the label."""
    try:
        pixels = model_pixels(read_image(row["image"], row["sample_id"]), image_processor)
    except UnreadableImage as error:
        raise UnreadableImage(error.sample_id, error.reason, row["label"]) from error
    return {"pixel_values": pixels, "labels": row["label"], "sample_id": row["sample_id"]}
