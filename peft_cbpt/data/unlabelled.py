"""Images without labels: a folder of image files in any order, or any dataset that has an image column."""

from pathlib import Path
from typing import Any

import datasets
from torch.utils.data import Dataset
from transformers import CLIPImageProcessorPil

from peft_cbpt.common.errors import InputError
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.data.decoding import model_pixels, read_image
from peft_cbpt.data.sources import find_column, keep_encoded, open_source
from peft_cbpt.data.tars import image_suffixes
from peft_cbpt.pocket.dataset import pocket_dataset


class UnlabelledImages(Dataset):
    """Rows of `pixel_values`, uint8 (3, H, W) at the model's resolution, and `sample_id`.

    Args:
        name: `pocket:DOMAIN`; a folder in which, or in folders of which, there are image files; or anything that
            `sources.open_source` takes.
        image_processor: Of the model.
        split: Of a dataset that has splits.
        num_images: Keep so many, drawn at random; all by default.
        image_column: Column of images; `image` also means a webdataset's `jpg`, `png` or `webp`.
        seed: Of the draw.

    Raises:
        InputError: if there is no such dataset, split, column or image.
    """

    def __init__(
        self,
        name: str,
        image_processor: CLIPImageProcessorPil,
        split: str = "train",
        num_images: int | None = None,
        image_column: str = "image",
        seed: int = 0,
    ):
        self.image_processor = image_processor
        rows: Any = _image_files(name)
        if name.startswith("pocket:"):
            rows, image_column = pocket_dataset(name.removeprefix("pocket:"), split, 3), "image"
        elif rows is None:
            rows = open_source(name, split)
            image_column = find_column(rows.column_names, image_column, name)
        else:
            image_column = "image"
        if isinstance(rows, datasets.Dataset):
            rows = keep_encoded(rows, image_column, name)
        if not len(rows):
            raise InputError(f"{name} has no images: give a folder or a dataset that has some")
        order = keyed_generator("unlabelled", seed).permutation(len(rows))
        self.rows, self.column, self.order = rows, image_column, order[: num_images or len(rows)].tolist()

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[self.order[int(index)]]
        image = read_image(row[self.column], row["sample_id"])
        return {"pixel_values": model_pixels(image, self.image_processor), "sample_id": row["sample_id"]}


def _image_files(name: str) -> list[dict[str, str]] | None:
    """All image files below a folder that has nothing else to open it by; None for anything else."""
    folder = Path(name).expanduser()
    if not folder.is_dir() or any(folder.glob("*.json")) or [*folder.rglob("*.parquet"), *folder.rglob("*.tar")]:
        return None
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in image_suffixes())
    return [{"image": str(file), "sample_id": str(file.relative_to(folder))} for file in files]
