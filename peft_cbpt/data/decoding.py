"""Images as people have them, read as 8-bit RGB, whatever their mode; what cannot be read says so."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import CLIPImageProcessorPil

from peft_cbpt.common.errors import InputError, first_line
from peft_cbpt.data.tars import open_member

MAX_ASPECT_RATIO = 16
_ORIENTATION = 0x0112  # EXIF tag


class UnreadableImage(InputError):
    """An image that cannot be decoded; callers skip it and list it, or stop."""

    def __init__(self, sample_id: str, reason: str, label: int | None = None):
        super().__init__(f"image {sample_id} cannot be read: replace or remove it ({reason})")
        self.sample_id, self.reason, self.label = sample_id, reason, label

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.sample_id, self.reason, self.label)


def read_image(value: Any, sample_id: str) -> Image.Image:
    """Decode an image to 8-bit RGB: the first frame, upright as its EXIF says.

    Images beyond Pillow's limit against decompression bombs, `2 * PIL.Image.MAX_IMAGE_PIXELS`, count as unreadable.

    Args:
        value: A PIL image, encoded bytes, a path, a place in an archive (`tars.open_member`), or a dict of
            `bytes` or `path`.
        sample_id: What to call the image in errors.

    Raises:
        UnreadableImage: if there is no image, if it is damaged, too large, or not of finite numbers.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of images it reads all the same
            return to_rgb(_upright(_open(value)), sample_id)
    except UnreadableImage:
        raise
    except Exception as error:  # damaged files raise errors of many kinds
        raise UnreadableImage(sample_id, _without_folder(first_line(error), value)) from error


def _without_folder(reason: str, value: Any) -> str:
    """The reason with the name of the image's file or archive for its path, which is not published with results."""
    path = value.get("path") if isinstance(value, dict) else value
    if not path or not isinstance(path, str):
        return reason
    path = path.rpartition("::")[2]
    return reason.replace(path, Path(path).name)


def _open(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise ValueError("there is no image")
    if isinstance(value, bytes):
        return Image.open(io.BytesIO(value))
    return Image.open(open_member(value) if value.startswith("tar://") else value)


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
    except Exception:  # damaged EXIF says nothing; the picture itself was read
        return image
    return ImageOps.exif_transpose(image) if turned else image


def to_rgb(image: Image.Image, sample_id: str) -> Image.Image:
    """The image as 8-bit RGB; 16-bit grey is scaled from 65535, float grey in [0, 1] from 1.

    Raises:
        UnreadableImage: for pixels that are not finite numbers.
    """
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image, dtype=np.float64)
        if not np.isfinite(grey).all():
            raise UnreadableImage(sample_id, "its pixels are not finite: NaN or infinite")
        if image.mode.startswith("I"):
            grey = grey / 257
        elif grey.max() <= 1:
            grey = grey * 255
        image = Image.fromarray(grey.clip(0, 255).round().astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def model_pixels(image: Image.Image, image_processor: CLIPImageProcessorPil) -> Tensor:
    """An RGB image as uint8 (3, H, W) at the model's resolution, resized and cropped as its processor does.

    Of an image more than `MAX_ASPECT_RATIO` times as long as it is wide the middle is taken first: resizing the whole
    would take gigabytes, and the crop throws the rest away.
    """
    longest = MAX_ASPECT_RATIO * min(image.size)
    if max(image.size) > longest:
        left, top = (max(0, side - longest) // 2 for side in image.size)
        image = image.crop((left, top, left + min(image.width, longest), top + min(image.height, longest)))
    if _leaves_as_is(image_processor, image.size):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    array = image_processor(image, do_rescale=False, do_normalize=False, return_tensors="np").pixel_values[0]
    return torch.from_numpy(np.asarray(array)).to(torch.uint8)


def _leaves_as_is(image_processor: CLIPImageProcessorPil, size: tuple[int, int]) -> bool:
    """Whether a processor neither resizes nor crops images of this width and height; asking it takes a millisecond."""
    resized, cropped = image_processor.size or {}, image_processor.crop_size or {}
    shortest = resized.get("shortest_edge")
    sides = (shortest or resized.get("width"), shortest or resized.get("height"))
    kept = sides == size and size[0] == size[1] if image_processor.do_resize else True
    whole = (cropped.get("width"), cropped.get("height")) == size
    return bool(kept and (whole or not image_processor.do_center_crop))
