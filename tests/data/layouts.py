"""Datasets written the way people have them: archives, parquet, and one with every kind of damage."""

import io
import tarfile

import datasets
import numpy as np
from PIL import Image

from peft_cbpt.pocket.dataset import pocket_dataset


def encoded(image, suffix="png", **settings):
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), **settings)
    return buffer.getvalue()


def write_tar(file, members):
    """A tar archive of (name, bytes)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def write_parquet(file, columns, **features):
    """A parquet file as the Hub has them: images as a struct of bytes and path."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = datasets.Dataset.from_dict(columns)
    for name, feature in features.items():
        rows = rows.cast_column(name, feature)
    rows.to_parquet(str(file))
    return file


def damaged_pictures():
    """200 pictures, 1% of them of each awkward kind, as (suffix, bytes); and the places of those nobody can read."""
    images = pocket_dataset("base", "damaged", 1)["image"][:200]
    pictures = [("jpg", encoded(image, "jpg", quality=95)) for image in images]
    ramp = np.tile(np.linspace(0, 65535, 48).astype(np.uint16), (48, 1))
    kinds = [
        lambda image: ("jpg", encoded(image, "jpg")[:400]),
        lambda image: ("png", encoded(image.convert("L"))),
        lambda image: ("jpg", encoded(image.convert("CMYK"), "jpg")),
        lambda image: ("gif", encoded(image, "gif", save_all=True, append_images=[image.rotate(90)], duration=50)),
        lambda _: ("png", encoded(Image.fromarray(ramp))),
    ]
    for number, kind in enumerate(kinds):
        for place in (10 + number, 110 + number):
            pictures[place] = kind(images[place])
    pictures[60] = ("png", encoded(Image.new("RGB", (20_000, 3), "red")))
    sideways = Image.Exif()
    sideways[0x0112] = 6
    pictures[61] = ("jpg", encoded(images[61], "jpg", exif=sideways))
    return pictures, [10, 110]


def write_damaged_folders(root, class_names, split):
    """`damaged_pictures` as class folders, in turns; returns the sample ids of those nobody can read."""
    pictures, unreadable = damaged_pictures()
    ids = []
    for place, (suffix, content) in enumerate(pictures):
        file = root / split / class_names[place % len(class_names)] / f"{place}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        ids.append(file.relative_to(root).as_posix())
    return [ids[place] for place in unreadable]
