"""Images without labels, from wherever they are: a folder of files in any order, a table, tensors, PIL images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import CLIPImageProcessorPil

from peft_cbpt.common.errors import InputError
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.data.columns import with_images
from peft_cbpt.data.decoding import UnreadableImage, model_pixels, read_image
from peft_cbpt.data.folders import image_files
from peft_cbpt.data.images import GIVEN, LabelledImages
from peft_cbpt.data.skipping import Skipped
from peft_cbpt.data.sources import open_source
from peft_cbpt.pocket.dataset import pocket_dataset

AnyImages: TypeAlias = str | datasets.Dataset | LabelledImages | Tensor | Sequence[Any]
"""A name, rows with an image column, pixels (N, 3, H, W) in [0, 1], or PIL images and paths."""
_POCKET_CLASSES, _POCKET_IMAGES = 320, 960


class UnlabelledImages(Dataset):
    """Rows of `pixel_values`, (3, H, W) at the model's resolution, uint8 or float in [0, 1], and `sample_id`.

    Those that cannot be read are left out, and listed in `skipped`.

    Args:
        images: Where they are. A name is `pocket:DOMAIN`; a folder in which, or in folders of which, there are image
            files; or anything that `sources.open_source` takes.
        image_processor: Of the model.
        num_images: Keep so many, drawn at random; all by default.
        split: Of a dataset that has splits.
        image_column: Of a table; `image` also means what `sources.OTHER_NAMES` lists.
        class_names: What the pocket world draws images of; all its classes by default.
        seed: Of the draw.

    Raises:
        InputError: if there is no such dataset, split or column, no image that can be read, or pixels are not in
            [0, 1].
    """

    def __init__(
        self,
        images: AnyImages,
        image_processor: CLIPImageProcessorPil,
        num_images: int | None = None,
        *,
        split: str = "train",
        image_column: str = "image",
        class_names: Sequence[str] | None = None,
        seed: int = 0,
    ):
        if num_images is not None and num_images < 1:
            raise InputError(f"num_images must be at least 1, it is {num_images}")
        if isinstance(images, str) and images.startswith("pocket:"):
            classes = len(class_names) if class_names else _POCKET_CLASSES
            each = max(1, -(-(num_images or _POCKET_IMAGES) // classes))
            images = pocket_dataset(images.removeprefix("pocket:"), split, each, class_names)
        self.image_processor = image_processor
        self.rows, self.column = _rows(images, split, image_column)
        self.order: list[int] = []
        self.skipped: list[Skipped] = []
        for row in keyed_generator("unlabelled images", seed).permutation(len(self.rows)).tolist():
            if len(self.order) == num_images:
                break
            try:
                self._read(row)
                self.order.append(row)
            except UnreadableImage as error:
                self.skipped.append(Skipped(error.sample_id, error.reason))
        if not self.order:
            name = images if isinstance(images, str) else GIVEN
            why = f"that can be read ({self.skipped[0].reason})" if self.skipped else "at all"
            raise InputError(f"{name} has no images {why}: give a folder or a dataset that has some")

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._read(self.order[int(index)])

    def pixels(self) -> Tensor:
        """All of them, float32 (N, 3, H, W) in [0, 1]."""
        stacked = torch.stack([self[row]["pixel_values"] for row in range(len(self))])
        return stacked.float() if stacked.is_floating_point() else stacked.float() / 255

    def _read(self, row: int) -> dict[str, Any]:
        if self.column is None:
            value, sample_id = self.rows[row], str(row)
        else:
            value, sample_id = self.rows[row][self.column], self.rows[row].get("sample_id", str(row))
        if not isinstance(value, Tensor):
            value = model_pixels(read_image(value, sample_id), self.image_processor)
        return {"pixel_values": value, "sample_id": sample_id}


def _rows(images: Any, split: str, image_column: str) -> tuple[Any, str | None]:
    """Rows with a column of images, or images themselves."""
    if isinstance(images, Tensor):
        span = (0, 255) if images.dtype == torch.uint8 else (0, 1)
        if images.ndim != 4 or images.shape[1] != 3 or images.min() < span[0] or images.max() > span[1]:
            raise InputError("pixels must be (N, 3, H, W) in [0, 1], before any normalisation")
        return images, None
    if isinstance(images, str):
        folder, name = Path(images).expanduser(), images
        packed = (*folder.rglob("*.tar"), *folder.rglob("*.parquet"), *folder.glob("*.json"))
        if folder.is_dir() and not packed:
            files = image_files(folder)
            return [{"image": str(file), "sample_id": file.relative_to(folder).as_posix()} for file in files], "image"
        return with_images(open_source(name, split), image_column, name, split)
    if isinstance(images, LabelledImages):
        images = images.dataset
    if isinstance(images, datasets.Dataset):
        return with_images(images, image_column, GIVEN)
    if not isinstance(images, Sequence):
        raise InputError(f"images must be a name, a dataset, pixels or PIL images, not {type(images).__name__}")
    return images, None
