import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from peft_cbpt.data.decoding import UnreadableImage, model_pixels, read_image
from tests.data.layouts import damaged_pictures, encoded

TOO_LARGE = encoded(Image.new("L", (200, 200)))


def test_awkward_pictures_are_read_and_broken_ones_say_so(poisoned_clip):
    pictures, unreadable = damaged_pictures()
    for place, (_, content) in enumerate(pictures):
        if place in unreadable:
            with pytest.raises(UnreadableImage, match=f"image {place} cannot be read"):
                read_image(content, str(place))
        else:
            pixels = model_pixels(read_image(content, str(place)), poisoned_clip.image_processor)
            assert pixels.shape == (3, 48, 48) and pixels.float().std() > 0 or place == 60


def test_pictures_stand_upright_as_their_exif_says():
    image = Image.new("RGB", (8, 4))
    image.paste("white", (0, 0, 4, 4))  # left half
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    upright = np.asarray(read_image(encoded(image, "jpg", exif=exif, quality=100), "a"))
    assert upright.shape == (8, 4, 3) and upright[:4].mean() > 200 and upright[4:].mean() < 50


def test_the_first_frame_of_an_animation_counts():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert read_image(content, "a").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    "value, reason",
    [
        (b"", "cannot identify"),
        (b"no picture", "cannot identify"),
        (None, "there is no image"),
        ({"bytes": None, "path": None}, "there is no image"),
        ("/no/such.png", "No such file"),
        (Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)), "not finite"),
    ],
)
def test_what_is_no_picture_is_unreadable(value, reason):
    with pytest.raises(UnreadableImage, match="image a cannot be read") as caught:
        read_image(value, "a")
    assert reason in caught.value.reason


def test_the_reason_names_no_folder(tmp_path):
    (tmp_path / "torn.png").write_bytes(b"no picture")
    gone = [str(tmp_path / "gone.png"), f"tar://0+9::{tmp_path}/gone.png.tar"]
    for value in (str(tmp_path / "torn.png"), *({"bytes": None, "path": path} for path in gone)):
        with pytest.raises(UnreadableImage) as caught:
            read_image(value, "a")
        assert ".png" in caught.value.reason and str(tmp_path) not in caught.value.reason


def test_an_unreadable_image_goes_between_processes():
    sent = pickle.loads(pickle.dumps(UnreadableImage("a", "torn", 3)))
    assert (sent.sample_id, sent.reason, sent.label) == ("a", "torn", 3) and "image a cannot be read" in str(sent)


def test_decompression_bombs_are_unreadable_and_what_pillow_warns_of_is_read(monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15_000)  # twice that is the limit
    with pytest.raises(UnreadableImage, match="exceeds limit"):
        read_image(TOO_LARGE, "a")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)
    assert read_image(TOO_LARGE, "a").size == (200, 200) and not recwarn.list


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (3, 50), (50, 3), (1, 1)])
def test_extreme_shapes_become_model_pixels(size, poisoned_clip):
    image = Image.new("RGB", size, (10, 200, 30))
    pixels = model_pixels(image, poisoned_clip.image_processor)
    assert pixels.shape == (3, 48, 48)
    assert pixels.float().mean((1, 2)).tolist() == pytest.approx([10, 200, 30], abs=2)


def test_taking_the_middle_of_a_long_picture_keeps_the_crop(poisoned_clip):
    ramp = np.random.default_rng(0).integers(0, 255, (60, 2400, 3), dtype=np.uint8)
    ramp = np.asarray(Image.fromarray(ramp).resize((1200, 30)))
    whole = poisoned_clip.image_processor(
        Image.fromarray(ramp), do_rescale=False, do_normalize=False, return_tensors="np"
    ).pixel_values[0]
    cut = model_pixels(Image.fromarray(ramp), poisoned_clip.image_processor)
    assert np.abs(whole.astype(int) - cut.numpy().astype(int)).mean() < 1


@pytest.mark.parametrize("size", [{"shortest_edge": 48}, {"shortest_edge": 55}, {"height": 48, "width": 48}])
@pytest.mark.parametrize("given", [(101, 77), (48, 48), (48, 60)])
def test_model_pixels_are_resized_and_cropped_as_the_processor_says(given, size, poisoned_clip):
    processor = poisoned_clip.image_processor
    processor.size = size
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*given, 3), dtype=np.uint8))
    pixels = model_pixels(image, processor)
    expected = processor(image, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(poisoned_clip.normalize(pixels / 255), expected, rtol=0, atol=1e-5)
    assert pixels.dtype == torch.uint8
