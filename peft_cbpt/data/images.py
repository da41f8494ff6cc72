"""Labelled images from wherever they are: the pocket world, a folder, Arrow on disk, or the Hub."""

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import CLIPImageProcessorPil

from peft_cbpt.errors import InputError
from peft_cbpt.pocket.atlas import class_names as pocket_class_names
from peft_cbpt.pocket.dataset import pocket_dataset


def load_labelled_images(
    name: str,
    split: str,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    image_column: str = "image",
    label_column: str = "label",
    images_per_class: int = 20,
) -> datasets.Dataset:
    """Load a labelled image dataset.

    Args:
        name: `pocket:DOMAIN`, a folder (of class folders, or saved by `Dataset.save_to_disk`), or a Hub id.
        split: Name of the split.
        class_names: The classes to keep, in label order; all of the dataset's by default.
        num_classes: Keep only the first so many classes.
        image_column: Column of images.
        label_column: Column of labels, a `ClassLabel`.
        images_per_class: How many images of a class the pocket world draws.

    Returns:
        Rows of `image`, `label` (index into the classes kept) and `sample_id`.

    Raises:
        InputError: if there is no such dataset, split, column or class, or a class without images.
    """
    if name.startswith("pocket:"):
        kept = _kept_names(pocket_class_names(), class_names, num_classes, name)
        return pocket_dataset(name.removeprefix("pocket:"), split, images_per_class, kept)
    dataset = _load(name, split)
    for column in (image_column, label_column):
        if column not in dataset.column_names:
            raise InputError(f"{name} has no column {column!r} but {', '.join(dataset.column_names)}")
    if not isinstance(dataset.features[image_column], datasets.Image):
        raise InputError(f"column {image_column!r} of {name} is no Image: cast it with dataset.cast_column")
    feature = dataset.features[label_column]
    if not isinstance(feature, datasets.ClassLabel):
        raise InputError(f"column {label_column!r} of {name} is no ClassLabel: cast it with dataset.cast_column")
    kept = _kept_names(feature.names, class_names, num_classes, name)
    labels = list(dataset[label_column])
    if None in labels:
        raise InputError(f"row {labels.index(None)} of {name} has no label: label it or remove it")
    new_label = {feature.str2int(kept_name): label for label, kept_name in enumerate(kept)}
    rows = [row for row, label in enumerate(labels) if label in new_label]
    if empty := sorted(set(kept) - {feature.names[label] for label in labels}):
        raise InputError(f"class {empty[0]!r} has no images in split {split!r} of {name}: add some or leave it out")
    if "sample_id" not in dataset.column_names:
        dataset = dataset.add_column("sample_id", [f"{split}/{row}" for row in range(len(dataset))])
    dataset = dataset.cast_column("sample_id", datasets.Value("string"))
    dataset = dataset.select(rows)
    relabelled = [new_label[labels[row]] for row in rows]
    dataset = dataset.select_columns([image_column, "sample_id"]).rename_columns(
        {image_column: "image"} if image_column != "image" else {}
    )
    return dataset.add_column("label", relabelled).cast_column("label", datasets.ClassLabel(names=list(kept)))


def _kept_names(
    known: Sequence[str], wanted: Sequence[str] | None, num_classes: int | None, dataset_name: str
) -> list[str]:
    kept = list(wanted or known)
    if twice := [name for name in kept if kept.count(name) > 1]:
        raise InputError(f"class {twice[0]!r} is named twice in class_names: name every class once")
    if unknown := [name for name in kept if name not in known]:
        raise InputError(f"class {unknown[0]!r} is not among the {len(known)} classes of {dataset_name}")
    if num_classes is not None:
        if not 2 <= num_classes <= len(kept):
            raise InputError(f"num_classes must be between 2 and the {len(kept)} classes of {dataset_name}")
        kept = kept[:num_classes]
    return kept


def _load(name: str, split: str) -> datasets.Dataset:
    folder = Path(name).expanduser()
    try:
        if not folder.exists():
            return datasets.load_dataset(name, split=split)
        if (folder / "dataset_dict.json").exists():
            return datasets.load_from_disk(str(folder))[split]
        if (folder / "state.json").exists():
            return datasets.load_from_disk(str(folder))
        return _load_folder(folder, split)
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{name} has no split {split!r}") from error
    except Exception as error:  # `datasets` raises many kinds for the same mistakes
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"cannot load split {split!r} of the dataset {name!r}: give a folder of class folders, a saved Dataset "
            f"or a Hub id that can be reached ({line})"
        ) from error


def _load_folder(folder: Path, split: str) -> datasets.Dataset:
    """A folder of class folders, or of `split` folders of class folders; sample ids are paths below `folder`."""
    root = folder / split if (folder / split).is_dir() else folder
    class_folders = _folders(root)
    if not class_folders:
        raise InputError(f"{root} holds no class folders: put the images of each class into a folder of its name")
    images: list[tuple[Path, str]] = []
    for class_folder in class_folders:
        files = [path for path in sorted(class_folder.iterdir()) if path.suffix.lower() in _image_suffixes()]
        if not files and _folders(class_folder) and root == folder:
            raise InputError(f"{folder} has no split {split!r} but {', '.join(path.name for path in class_folders)}")
        if not files:
            raise InputError(f"the class folder {class_folder} is empty: add images or remove it")
        images += [(path, class_folder.name) for path in files]
    names = [class_folder.name for class_folder in class_folders]
    return datasets.Dataset.from_dict(
        {
            "image": [str(path) for path, _ in images],
            "label": [name for _, name in images],
            "sample_id": [path.relative_to(folder).as_posix() for path, _ in images],
        },
        features=datasets.Features(
            image=datasets.Image(), label=datasets.ClassLabel(names=names), sample_id=datasets.Value("string")
        ),
    )


def _folders(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]


@cache
def _image_suffixes() -> frozenset[str]:
    return frozenset(Image.registered_extensions())


def few_shot_rows(
    labels: Sequence[int], sample_ids: Sequence[str], num_shots: int, seed: int, class_names: Sequence[str]
) -> list[int]:
    """The rows of a seeded choice of `num_shots` images of every class.

    The choice hashes seed and sample id, so it does not depend on the order of the dataset or the machine.

    Raises:
        InputError: if `num_shots` is below 1 or a class has fewer images.
    """
    if num_shots < 1:
        raise InputError(f"num_shots must be at least 1, it is {num_shots}")
    rows_of: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        rows_of.setdefault(label, []).append(row)
    chosen: list[int] = []
    for label, rows in sorted(rows_of.items()):
        if len(rows) < num_shots:
            raise InputError(
                f"num_shots is {num_shots}, but class {class_names[label]!r} has only {len(rows)} images: "
                "lower num_shots or add images"
            )
        rows.sort(key=lambda row: hashlib.blake2b(f"{seed}/{sample_ids[row]}".encode()).digest())
        chosen += rows[:num_shots]
    return chosen


def to_rgb(image: Image.Image, sample_id: str) -> Image.Image:
    """The image as 8-bit RGB; 16-bit grey is scaled from 65535, float grey in [0, 1] from 1.

    Raises:
        InputError: for pixels that are not finite numbers.
    """
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image, dtype=np.float64)
        if not np.isfinite(grey).all():
            raise InputError(
                f"image {sample_id} has pixels that are not finite (NaN or infinite): replace or remove it"
            )
        if image.mode.startswith("I"):
            grey = grey / 257
        elif grey.max() <= 1:
            grey = grey * 255
        image = Image.fromarray(grey.clip(0, 255).round().astype(np.uint8))
    return image.convert("RGB")


class LabelledImages(Dataset):
    """Rows of `load_labelled_images` as the trainer takes them.

    `pixel_values` is uint8 (3, H, W) at the model's resolution, not normalised; `labels` an int; `sample_id` a string.
    """

    def __init__(self, dataset: datasets.Dataset, image_processor: CLIPImageProcessorPil):
        self.dataset, self.image_processor = dataset, image_processor

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            row = self.dataset[int(index)]
        except (OSError, SyntaxError) as error:  # what Pillow raises for damaged files
            raise InputError(f"image {index} cannot be read: replace or remove it ({error})") from error
        if row["image"] is None:
            raise InputError(f"sample {row['sample_id']} has no image: remove it")
        image = to_rgb(row["image"], row["sample_id"])
        array = self.image_processor(image, do_rescale=False, do_normalize=False, return_tensors="np").pixel_values[0]
        pixels: Tensor = torch.from_numpy(np.asarray(array)).to(torch.uint8)
        return {"pixel_values": pixels, "labels": row["label"], "sample_id": row["sample_id"]}
