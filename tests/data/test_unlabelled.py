import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from peft_cbpt.common.errors import InputError
from peft_cbpt.data.unlabelled import UnlabelledImages

PROCESSOR = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})


@pytest.fixture
def folder(tmp_path):
    for number in range(5):
        place = tmp_path / ("here" if number % 2 else "there/deeper")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((60, 50, 3), 10 * number, dtype=np.uint8)).save(place / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_image_files_of_any_folders_are_found_and_sized_to_the_model(folder):
    images = UnlabelledImages(str(folder), PROCESSOR)
    assert sorted(images[row]["sample_id"].rpartition("/")[2] for row in range(5)) == [f"{n}.png" for n in range(5)]
    assert all(images[row]["pixel_values"].shape == (3, 48, 48) for row in range(5))
    assert images[0]["pixel_values"].dtype == torch.uint8


def test_a_draw_depends_on_the_seed_alone(folder):
    def drawn(seed):
        images = UnlabelledImages(str(folder), PROCESSOR, num_images=3, seed=seed)
        return [images[row]["sample_id"] for row in range(len(images))]

    assert len(drawn(0)) == 3 and drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(5)}) > 1


def test_pocket_images_are_of_any_class(folder):
    images = UnlabelledImages("pocket:base", PROCESSOR, num_images=20)
    assert len({images[row]["sample_id"].split("/")[2] for row in range(20)}) > 15


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(InputError, match="no images"):
        UnlabelledImages(str(tmp_path), PROCESSOR)
