import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from peft_cbpt.data.images import LabelledImages, few_shot_rows, load_labelled_images
from peft_cbpt.errors import InputError
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


def test_few_shots_do_not_depend_on_order():
    dataset = pocket_dataset("base", "train", 8, NAMES)
    labels, ids = dataset["label"], dataset["sample_id"]
    chosen = few_shot_rows(labels, ids, 3, seed=0)
    order = np.random.default_rng(0).permutation(len(ids))
    shuffled = few_shot_rows([labels[i] for i in order], [ids[i] for i in order], 3, seed=0)
    assert {ids[row] for row in chosen} == {ids[order[row]] for row in shuffled}
    assert [labels[row] for row in chosen] == [0] * 3 + [1] * 3 + [2] * 3
    assert {ids[row] for row in chosen} != {ids[row] for row in few_shot_rows(labels, ids, 3, seed=1)}


@pytest.mark.parametrize("shots, message", [(0, "at least 1"), (9, "only 8 images")])
def test_impossible_shots_are_refused(shots, message):
    dataset = pocket_dataset("base", "train", 8, NAMES)
    with pytest.raises(InputError, match=message):
        few_shot_rows(dataset["label"], dataset["sample_id"], shots, seed=0)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "I;16", "F"])
def test_every_kind_of_image_becomes_rgb_bytes(mode, poisoned_clip):
    image = Image.new(mode, (60, 50))
    rows = LabelledImages([{"image": image, "label": 0, "sample_id": "a"}], poisoned_clip.image_processor)
    assert rows[0]["pixel_values"].shape == (3, 48, 48) and rows[0]["pixel_values"].dtype == torch.uint8


def test_pixels_that_are_no_numbers_are_refused(poisoned_clip):
    image = Image.fromarray(np.full((48, 48), np.nan, dtype=np.float32))
    rows = LabelledImages([{"image": image, "label": 0, "sample_id": "a"}], poisoned_clip.image_processor)
    with pytest.raises(InputError, match="image a has pixels that are not finite"):
        rows[0]


def test_a_label_column_of_numbers_is_refused(tmp_path):
    images = pocket_dataset("base", "train", 1, NAMES)
    Dataset.from_dict({"image": images["image"], "label": [0, 1, 2]}).save_to_disk(str(tmp_path / "plain"))
    with pytest.raises(InputError, match="no ClassLabel"):
        load_labelled_images(str(tmp_path / "plain"), "train")
