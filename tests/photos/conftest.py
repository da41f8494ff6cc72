import importlib
import io
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from peft_cbpt.photos.classes import names_by_wnid

RECIPES = Path(__file__).parents[2] / "recipes"


def recipe(name):
    """A recipe as a module."""
    sys.path.insert(0, str(RECIPES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(RECIPES))


def write_tiny_imagenet(folder, written, images_per_class=12, num_classes=4):
    """Parquet files in the layout of Tiny-ImageNet, whose classes are written as `names` or as `wnids`."""
    known = list(names_by_wnid().items())[:num_classes]
    labels = [wnid if written == "wnids" else name for wnid, name in known]
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        images, numbers = [], []
        for number in range(num_classes):
            for _ in range(images_per_class):
                pixels = rng.integers(0, 80, (64, 64, 3)) + 40 * number
                buffer = io.BytesIO()
                Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
                images.append({"bytes": buffer.getvalue(), "path": None})
                numbers.append(number)
        rows = datasets.Dataset.from_dict(
            {"image": images, "label": numbers},
            features=datasets.Features(image=datasets.Image(decode=False), label=datasets.ClassLabel(names=labels)),
        )
        rows.cast_column("image", datasets.Image()).to_parquet(str(folder / f"{split}.parquet"))
    return folder


@pytest.fixture(scope="session")
def photos_folder(tmp_path_factory):
    """What `recipes/prepare_photos.py` makes of a tiny Tiny-ImageNet with wnids."""
    source = write_tiny_imagenet(tmp_path_factory.mktemp("tiny"), "wnids")
    output = tmp_path_factory.mktemp("photos")
    prepare = recipe("prepare_photos")
    prepare.main(prepare.PrepareArguments(output_dir=str(output), dataset_name=str(source)))
    return output
