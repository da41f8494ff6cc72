import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from transformers import CLIPImageProcessorPil

from peft_cbpt.common.errors import InputError
from peft_cbpt.data.unlabelled import UnlabelledImages

PROCESSOR = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})


def pictures(n):
    return [Image.new("RGB", (60, 50), (20 * number, 0, 255 - 20 * number)) for number in range(n)]


def load(images, count=None, **options):
    return UnlabelledImages(images, PROCESSOR, count, **options)


@pytest.fixture
def folder(tmp_path):
    for number in range(5):
        place = tmp_path / ("here" if number % 2 else "there/deeper")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((60, 50, 3), 10 * number, dtype=np.uint8)).save(place / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_image_files_of_any_folders_are_found_and_sized_to_the_model(folder):
    images = load(str(folder))
    assert sorted(images[row]["sample_id"].rpartition("/")[2] for row in range(5)) == [f"{n}.png" for n in range(5)]
    assert all(images[row]["pixel_values"].shape == (3, 48, 48) for row in range(5))
    assert images[0]["pixel_values"].dtype == torch.uint8


def test_what_cannot_be_read_is_left_out_and_listed(folder):
    (folder / "here" / "broken.png").write_bytes(b"no image")
    images = load(str(folder), 5)
    assert images.pixels().shape == (5, 3, 48, 48) and 0 <= images.pixels().min() and images.pixels().max() <= 1
    assert [one.sample_id for one in load(str(folder)).skipped] == ["here/broken.png"]


def test_a_draw_depends_on_the_seed_alone(folder):
    def drawn(seed):
        images = load(str(folder), 3, seed=seed)
        return [images[row]["sample_id"] for row in range(len(images))]

    assert len(drawn(0)) == 3 and drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("wrap", [list, lambda images: Dataset.from_dict({"image": images})])
def test_pictures_and_tables_without_labels(wrap):
    rows = wrap(pictures(5))
    if isinstance(rows, Dataset):
        rows = rows.cast_column("image", ImageFeature())
    assert load(rows, 4).pixels().shape == (4, 3, 48, 48)


def test_pixels_are_taken_as_they_are_and_normalised_ones_are_refused():
    pixels = torch.rand(6, 3, 8, 8)
    assert load(pixels, 6).pixels().sort(0).values.allclose(pixels.sort(0).values)
    assert load((255 * pixels).byte()).pixels().max() <= 1
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        load(2 * pixels)


def test_the_pocket_world_draws_any_class_or_those_given():
    images = load("pocket:base", 20)
    assert len({images[row]["sample_id"].split("/")[2] for row in range(20)}) > 15
    assert load("pocket:base", 6, class_names=["banana", "dog"]).pixels().shape == (6, 3, 48, 48)


@pytest.mark.parametrize(
    "make, cure", [(lambda _: None, "no images at all"), (lambda file: file.touch(), "cannot ide")]
)
def test_a_folder_without_images_is_refused(tmp_path, make, cure):
    make(tmp_path / "a.png")
    with pytest.raises(InputError, match=cure):
        load(str(tmp_path))


def test_no_number_of_images_is_refused(folder):
    with pytest.raises(InputError, match="num_images must be at least 1"):
        load(str(folder), 0)
