"""All photographs of a split in memory."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peft_cbpt.data.columns import with_images
from peft_cbpt.data.decoding import model_pixels, read_image
from peft_cbpt.data.sources import open_source
from peft_cbpt.photos.model import build_image_processor


@dataclass(frozen=True)
class Photographs:
    """Pixels (N, 3, 64, 64) uint8, labels (N,) and the names that the labels count."""

    pixels: Tensor
    labels: Tensor
    class_names: list[str]


def read_photographs(folder: str, split: str) -> Photographs:
    """Decode one split of a folder of `recipes/prepare_photos.py`, in the order of its rows."""
    rows: Any
    rows, _ = with_images(open_source(folder, split), "image", folder, split)
    processor = build_image_processor()
    images = [model_pixels(read_image(row["image"], row["sample_id"]), processor) for row in rows]
    return Photographs(torch.stack(images), torch.tensor(list(rows["label"])), list(rows.features["label"].names))
