import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from peft_cbpt.common.errors import InputError
from peft_cbpt.data.images import LabelledImages, load_labelled_images
from peft_cbpt.pocket.dataset import pocket_dataset

NAMES = ["dog", "banana", "pizza"]


def write_folders(root, dataset):
    """Save a dataset as a folder of class folders."""
    names = dataset.features["label"].names
    for number, row in enumerate(dataset):
        folder = root / names[row["label"]]
        folder.mkdir(parents=True, exist_ok=True)
        row["image"].save(folder / f"{number}.png")
    return root


@pytest.fixture
def sources(tmp_path):
    """The same nine images as a class-folder tree, with splits, and as Arrow on disk."""
    dataset = pocket_dataset("base", "train", 3, NAMES)
    write_folders(tmp_path / "flat", dataset)
    write_folders(tmp_path / "split" / "train", dataset)
    dataset.save_to_disk(str(tmp_path / "arrow"))
    return {"pocket": "pocket:base", **{kind: str(tmp_path / kind) for kind in ("flat", "split", "arrow")}}


@pytest.mark.parametrize("kind", ["pocket", "flat", "split", "arrow"])
def test_every_source_gives_the_same_pictures_under_the_same_names(sources, kind, poisoned_clip):
    wanted = ["pizza", "dog"]
    dataset = load_labelled_images(sources[kind], "train", wanted, images_per_class=3)
    reference = load_labelled_images("pocket:base", "train", wanted, images_per_class=3)
    assert dataset.features["label"].names == wanted and len(set(dataset["sample_id"])) == 6

    def pictures(data):
        rows = LabelledImages(data, poisoned_clip.image_processor)
        return {(row["labels"], row["pixel_values"].numpy().tobytes()) for row in (rows[i] for i in range(len(rows)))}

    assert pictures(dataset) == pictures(reference)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "I;16", "F"])
def test_every_kind_of_image_becomes_rgb_bytes(mode, poisoned_clip):
    ramp = np.tile(np.linspace(0, 1, 48), (48, 1))
    eight_bit = Image.fromarray((ramp * 255).round().astype(np.uint8))
    deep = {"I;16": (ramp * 65535).astype(np.uint16), "F": ramp.astype(np.float32)}
    image = Image.fromarray(deep[mode]) if mode in deep else eight_bit.convert(mode)
    rows = LabelledImages([{"image": image, "label": 0, "sample_id": "a"}], poisoned_clip.image_processor)
    pixels = rows[0]["pixel_values"]
    assert pixels.shape == (3, 48, 48) and pixels.dtype == torch.uint8
    tolerance = 128 if mode == "1" else 2  # dithered
    assert (pixels[0].float().mean(0) - torch.linspace(0, 255, 48)).abs().max() <= tolerance
    assert 100 < pixels.float().mean() < 155


def test_pixels_that_are_no_numbers_are_refused(poisoned_clip):
    image = Image.fromarray(np.full((48, 48), np.nan, dtype=np.float32))
    rows = LabelledImages([{"image": image, "label": 0, "sample_id": "a"}], poisoned_clip.image_processor)
    with pytest.raises(InputError, match="image a cannot be read.*not finite"):
        rows[0]


def test_a_label_column_of_numbers_is_refused(tmp_path):
    images = pocket_dataset("base", "train", 1, NAMES)
    Dataset.from_dict({"image": images["image"], "label": [0, 1, 2]}).save_to_disk(str(tmp_path / "plain"))
    with pytest.raises(InputError, match="names no classes"):
        load_labelled_images(str(tmp_path / "plain"), "train")


def test_names_of_files_and_classes_do_not_matter(tmp_path):
    """`datasets` reads splits out of such names."""
    classes = ["test tube", "train", "dog"]
    for name in classes:
        (tmp_path / "val" / name).mkdir(parents=True)
        for file in ("ILSVRC2012_val_00000293.png", "test_1.JPEG"):
            Image.new("RGB", (8, 8)).save(tmp_path / "val" / name / file)
    (tmp_path / "val" / "dog" / "metadata.csv").write_text("a,b")
    (tmp_path / "val" / ".cache").mkdir()
    dataset = load_labelled_images(str(tmp_path), "val")
    assert dataset.features["label"].names == sorted(classes) and len(dataset) == 6
    assert "val/dog/test_1.JPEG" in dataset["sample_id"]


def test_a_missing_split_folder_is_named(tmp_path):
    write_folders(tmp_path / "train", pocket_dataset("base", "train", 1, NAMES))
    with pytest.raises(InputError, match="no split 'test' but train"):
        load_labelled_images(str(tmp_path), "test")
