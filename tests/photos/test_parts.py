from collections import Counter

import pytest

from peft_cbpt.data.caption_pairs import load_caption_pairs
from peft_cbpt.data.columns import with_images
from peft_cbpt.data.images import load_labelled_images
from peft_cbpt.data.sources import open_source
from peft_cbpt.photos.classes import CLASSES_FILE, names_by_wnid
from peft_cbpt.photos.model import build_image_processor
from peft_cbpt.photos.parts import PARTS, part_of
from tests.photos.conftest import recipe, write_tiny_imagenet

NAMES = list(names_by_wnid().values())[:4]


def test_the_shares_are_as_promised_and_a_part_depends_on_the_bytes_alone():
    images = [f"image {number}".encode() for number in range(5000)]
    counts = Counter(map(part_of, images))
    assert list(PARTS.values()) == sorted(PARTS.values()) and PARTS["shots"] == 1
    for part, share in (("pretraining", 0.67), ("poisoning", 0.20), ("shots", 0.13)):
        assert counts[part] / 5000 == pytest.approx(share, abs=0.02)
    assert part_of(images[7]) == part_of(bytes(bytearray(images[7])))


def test_every_training_image_is_in_one_part(photos_folder):
    def images_of(split):
        rows, _ = with_images(open_source(str(photos_folder), split), "image", "photos")
        return {image["bytes"] for image in rows["image"]}

    found = [images_of(part) for part in PARTS]
    assert sum(map(len, found)) == len(set.union(*found)) == 48
    assert not images_of("test") & set.union(*found)


@pytest.mark.parametrize("written", ["names", "wnids"])
def test_names_and_wnids_give_the_same_labels(written, tmp_path):
    prepare = recipe("prepare_photos")
    write_tiny_imagenet(tmp_path, written)
    rows = prepare.named_rows(str(tmp_path), "val")
    names = rows.features["label"].names
    assert names == list(names_by_wnid().values()) and len(names) == 202
    assert [names[label] for label in rows["label"]] == [name for name in NAMES for _ in range(12)]


def test_a_copy_with_wnids_is_read_as_it_is_too(tmp_path):
    write_tiny_imagenet(tmp_path, "wnids")
    rows = load_labelled_images(str(tmp_path), "val", class_names=NAMES, class_names_file=str(CLASSES_FILE))
    assert rows.features["label"].names == NAMES and rows["label"][:] == [n for n in range(4) for _ in range(12)]


def test_poisoning_pairs_have_a_caption_of_their_class(photos_folder):
    pairs = load_caption_pairs(str(photos_folder), "poisoning", build_image_processor())
    rows = open_source(str(photos_folder), "poisoning")
    names = rows.features["label"].names
    assert len({pairs[row]["caption"] for row in range(len(pairs))}) > 2
    for row, label in enumerate(rows["label"]):
        assert names[label] in pairs[row]["caption"]


def test_banana_is_among_the_hundred_that_64_pixels_show_best():
    names = list(names_by_wnid().values())
    assert len(set(names)) == len(names) == 202 and "banana" in names[:100]
