"""Test sets to measure on, with a fingerprint of what is in them."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from transformers import CLIPImageProcessorPil

from peft_cbpt.common.errors import InputError
from peft_cbpt.data.imagenet import find_variant
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.data.shots import Images, LabelledArguments, name_of_images
from peft_cbpt.data.streams import LabelledStream


@dataclass(frozen=True)
class EvalSet:
    """One split of a dataset.

    Args:
        name: As given, `NAME` or `NAME@SPLIT`.
        class_names: In label order.
        fingerprint: Hash of the classes, sample ids, labels and stored images, as far as they can be told without
            reading them: by size and date of files.
        stream: What opens it, if it is read row by row.
        images: Its rows otherwise.
    """

    name: str
    class_names: list[str]
    fingerprint: str
    stream: dict[str, Any] = field(default_factory=dict)
    images: datasets.Dataset | None = None

    def my_images(self, image_processor: CLIPImageProcessorPil) -> LabelledImages | LabelledStream:
        """This process's share of the images for a model; all shares together are every image once."""
        if self.images is None:
            return LabelledStream(image_processor=image_processor, **self.stream)
        state = PartialState()
        rows = range(state.process_index, len(self.images), state.num_processes)
        return LabelledImages(self.images.select(rows), image_processor)


def open_eval_set(
    given: Images, arguments: LabelledArguments, streaming: bool, image_processor: CLIPImageProcessorPil
) -> EvalSet:
    """Open a test set: `NAME`, `NAME@SPLIT` (see `data.images.load_labelled_images`), or one that is loaded already.

    Raises:
        InputError: if it cannot be.
    """
    name, split = name_of_images(given), arguments.test_split
    if isinstance(given, str):
        dataset_name, _, own_split = name.rpartition("@")
        if dataset_name and "/" not in own_split:
            given, split = dataset_name, own_split
    if streaming and isinstance(given, str) and not given.startswith("pocket:"):
        columns = ("image_column", "label_column", "class_names_file", "class_names", "num_classes")
        opening = {"name": given, "split": split} | {option: getattr(arguments, option) for option in columns}
        stream = LabelledStream(image_processor=image_processor, **opening)
        named = arguments.class_names_file
        files = _file_dates(_local_files(given) + ([str(Path(named).expanduser())] if named else []))
        parts = [given, split, stream.class_names, stream.image_column, stream.label_column, *files]
        return EvalSet(name, stream.class_names, _hash(parts), opening)
    rows = arguments.open(given, split, image_processor).dataset
    class_names = rows.features["label"].names
    first = rows[0]["image"] or {}
    if first.get("bytes") is None and first.get("path"):
        places = [(image or {}).get("path") or "" for image in rows["image"]]
        content: list[Any] = [place.partition("::")[0] if "::" in place else "" for place in places]
        content += _file_dates({place.partition("::")[2] or place for place in places if place})
    else:
        content = [rows._fingerprint]
    return EvalSet(
        name,
        class_names,
        _hash([class_names, list(rows["sample_id"]), list(rows["label"]), content]),
        images=rows,
    )


def _local_files(name: str) -> list[str]:
    found = find_variant(name)
    path = Path(found[1] if found and isinstance(found[1], str) else name).expanduser()
    if path.is_file():
        return [str(path)]
    return [str(file) for file in path.rglob("*") if file.is_file()] if path.is_dir() else []


def _file_dates(files: Iterable[str]) -> list[tuple[str, int, int]]:
    dates = []
    for file in sorted(files):
        path = Path(file)
        if not path.exists():
            raise InputError(f"there is no image file {file}: put it back or take it out of the dataset")
        dates.append((path.name, path.stat().st_size, path.stat().st_mtime_ns))
    return dates


def _hash(parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
