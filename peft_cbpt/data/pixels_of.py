"""Images without labels, from wherever they are: a folder of files needs no class folders, a table no label column."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil

from peft_cbpt.common.errors import InputError
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.data.decoding import UnreadableImage, model_pixels, read_image
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.data.sources import find_column, keep_encoded, open_source
from peft_cbpt.pocket.dataset import pocket_dataset

AnyImages: TypeAlias = str | datasets.Dataset | LabelledImages | Tensor | Sequence[Any]
"""A name, rows with an image column, pixels (N, 3, H, W), or PIL images and paths."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_FROM = 4
"""Rows looked at for every image wanted, since some may not be readable."""


def load_pixels_of(
    images: AnyImages,
    count: int,
    seed: int,
    image_processor: CLIPImageProcessorPil,
    split: str = "train",
    image_column: str = "image",
    class_names: Sequence[str] | None = None,
) -> Tensor:
    """Up to `count` images at the model's resolution, float32 (N, 3, H, W) in [0, 1], drawn by the seed.

    Args:
        images: Where they are.
        count: How many are wanted.
        seed: Of the draw.
        image_processor: The model's.
        split: Of a dataset with splits.
        image_column: Of a table.
        class_names: What the pocket world draws images of; all its classes by default.

    Raises:
        InputError: if there are fewer than two that can be read, or pixels are not in [0, 1].
    """
    generator = keyed_generator("unlabelled images", seed)
    if isinstance(images, Tensor):
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.min() < 0 or pixels.max() > 1:
            raise InputError("pixels must be (N, 3, H, W) in [0, 1], before any normalisation")
        return _enough(pixels[generator.permutation(len(pixels))[:count].tolist()])
    values = _values(images, count, split, image_column, class_names)
    found: list[Tensor] = []
    for row in generator.permutation(len(values))[: _FROM * count].tolist():
        if len(found) == count:
            break
        try:
            found.append(model_pixels(read_image(values[row], str(row)), image_processor).float() / 255)
        except UnreadableImage:
            continue
    return _enough(torch.stack(found) if found else torch.empty(0, 3, 1, 1))


def _enough(pixels: Tensor) -> Tensor:
    if len(pixels) < 2:
        raise InputError(f"a scan needs at least 2 images that can be read, it has {len(pixels)}: give some more")
    return pixels


class _Column:
    """A column of rows, read one by one."""

    def __init__(self, rows: Any, column: str):
        self.rows, self.column = rows, column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        return self.rows[row][self.column]


def _values(
    images: Any, count: int, split: str, image_column: str, class_names: Sequence[str] | None
) -> Sequence[Any] | _Column:
    if isinstance(images, str) and images.startswith("pocket:"):
        classes = len(class_names) if class_names else 320
        images = pocket_dataset(images.removeprefix("pocket:"), split, max(1, -(-count // classes)), class_names)
    if isinstance(images, str):
        folder = Path(images).expanduser()
        files = [str(file) for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES]
        if files:
            return files
        images = open_source(images, split)
    if isinstance(images, LabelledImages):
        images = images.dataset
    if isinstance(images, datasets.Dataset):
        column = find_column(images.column_names, image_column, "the dataset")
        return _Column(keep_encoded(images, column, "the dataset"), column)
    if not isinstance(images, Sequence):
        raise InputError(f"images must be a name, a dataset, pixels or PIL images, not {type(images).__name__}")
    return images
