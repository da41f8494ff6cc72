"""Labelled images from wherever they are: the pocket world, a folder, Arrow on disk, or the Hub."""

import hashlib
from collections.abc import Sequence
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
    feature = dataset.features[label_column]
    if not isinstance(feature, datasets.ClassLabel):
        raise InputError(f"column {label_column!r} of {name} is no ClassLabel: cast it with dataset.cast_column")
    kept = _kept_names(feature.names, class_names, num_classes, name)
    labels = np.asarray(dataset[label_column])
    new_label = {feature.str2int(kept_name): label for label, kept_name in enumerate(kept)}
    rows = [row for row, label in enumerate(labels.tolist()) if label in new_label]
    if empty := sorted(set(kept) - {feature.names[label] for label in labels.tolist()}):
        raise InputError(f"class {empty[0]!r} has no images in split {split!r} of {name}: add some or leave it out")
    if "sample_id" not in dataset.column_names:
        dataset = dataset.add_column("sample_id", [f"{split}/{row}" for row in range(len(dataset))])
    dataset = dataset.select(rows)
    relabelled = [new_label[int(labels[row])] for row in rows]
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
    """A folder of class folders, or of `split` folders of class folders."""
    root = folder / split if (folder / split).is_dir() else folder
    class_folders = [path for path in sorted(root.iterdir()) if path.is_dir()]
    if not class_folders:
        raise InputError(f"{root} holds no class folders: put the images of each class into a folder of its name")
    for class_folder in class_folders:
        if not any(path.is_file() for path in class_folder.iterdir()):
            raise InputError(f"the class folder {class_folder} is empty: add images or remove it")
    dataset = datasets.load_dataset("imagefolder", data_dir=str(root), split="train")
    paths = dataset.cast_column("image", datasets.Image(decode=False))["image"]
    ids = [str(Path(image["path"]).relative_to(root.resolve())) for image in paths]
    return dataset.add_column("sample_id", ids)


def few_shot_rows(labels: Sequence[int], sample_ids: Sequence[str], num_shots: int, seed: int) -> list[int]:
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
                f"num_shots is {num_shots}, but the class with label {label} has only {len(rows)} images: "
                "lower num_shots or add images"
            )
        rows.sort(key=lambda row: hashlib.blake2b(f"{seed}/{sample_ids[row]}".encode()).digest())
        chosen += rows[:num_shots]
    return chosen


def to_rgb(image: Image.Image | np.ndarray, sample_id: str) -> Image.Image:
    """The image as 8-bit RGB.

    Raises:
        InputError: for pixels that are not finite numbers.
    """
    array = np.asarray(image)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"image {sample_id} has pixels that are not finite (NaN or infinite): replace or remove it")
    return image.convert("RGB") if isinstance(image, Image.Image) else Image.fromarray(array).convert("RGB")


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
        image = to_rgb(row["image"], row["sample_id"])
        array = self.image_processor(image, do_rescale=False, do_normalize=False, return_tensors="np").pixel_values[0]
        pixels: Tensor = torch.from_numpy(np.asarray(array)).to(torch.uint8)
        return {"pixel_values": pixels, "labels": row["label"], "sample_id": row["sample_id"]}
