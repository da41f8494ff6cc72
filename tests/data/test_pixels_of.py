import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import CLIPImageProcessorPil

from peft_cbpt.common.errors import InputError
from peft_cbpt.data.pixels_of import load_pixels_of

PROCESSOR = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})


def pictures(n):
    return [Image.new("RGB", (60, 50), (20 * number, 0, 255 - 20 * number)) for number in range(n)]


def load(images, count=4, **options):
    return load_pixels_of(images, count, 0, PROCESSOR, **options)


def test_a_folder_of_files_needs_no_class_folders(tmp_path):
    for number, picture in enumerate(pictures(5)):
        picture.save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "broken.png").write_bytes(b"no image")
    pixels = load(str(tmp_path), 9)
    assert pixels.shape == (5, 3, 48, 48) and 0 <= pixels.min() and pixels.max() <= 1


@pytest.mark.parametrize("wrap", [list, lambda images: Dataset.from_dict({"image": images})])
def test_pictures_and_tables_without_labels(wrap):
    rows = wrap(pictures(5))
    if isinstance(rows, Dataset):
        from datasets import Image as ImageFeature

        rows = rows.cast_column("image", ImageFeature())
    assert load(rows).shape == (4, 3, 48, 48)


def test_pixels_are_taken_as_they_are_and_normalised_ones_are_refused():
    pixels = torch.rand(6, 3, 8, 8)
    assert load(pixels, 6).sort(0).values.allclose(pixels.sort(0).values)
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        load(2 * pixels)


def test_the_pocket_world_draws_the_classes_given():
    assert load("pocket:base", 6, class_names=["banana", "dog"]).shape == (6, 3, 48, 48)


def test_one_image_is_too_few():
    with pytest.raises(InputError, match="at least 2"):
        load(pictures(1))
