"""Columns of datasets: found by what they are called, images as they are stored, an id for every row."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from peft_cbpt.common.errors import InputError

# What webdataset, image folders with metadata and caption corpora call the columns that we call by one name.
OTHER_NAMES = {
    "image": ("jpg", "jpeg", "png", "webp", "file_name", "filename", "path", "filepath", "image_path"),
    "label": ("cls", "class", "class_name"),
    "caption": ("text", "txt"),
}
_TRIED = 100
"""Paths, of which some may be missing, that say where the others are."""
ENCODED = datasets.Image(decode=False)

Rows: TypeAlias = "datasets.Dataset | datasets.IterableDataset"


def find_column(columns: Sequence[str], wanted: str, dataset_name: str) -> str:
    """The column of this name, or the one that webdatasets have in its place.

    Raises:
        InputError: if there is neither.
    """
    for column in (wanted, *OTHER_NAMES.get(wanted, ())):
        if column in columns:
            return column
    raise InputError(f"{dataset_name} has no column {wanted!r} but {', '.join(columns)}")


def with_images(rows: Rows, wanted: str, name: str, split: str = "") -> tuple[Rows, str]:
    """The rows with images as they are stored, to be decoded by `decoding.read_image`, and the name of their column.

    Args:
        rows: Of images, encoded images, or paths of image files, which then are the `sample_id`s.
        wanted: Name of the column; see `find_column`.
        name: Of the dataset. Paths are relative to it or its folder, to its split's, or to the current one.
        split: Which is open.

    Raises:
        InputError: if there is no such column, or none of images.
    """
    column = find_column(rows.column_names or list(next(iter(rows))), wanted, name)
    feature = (rows.features or {}).get(column)
    if isinstance(feature, datasets.Image):
        return rows.cast_column(column, ENCODED), column
    if isinstance(feature, datasets.Value) and "string" in feature.dtype:
        return _with_files(rows, column, name, split), column
    is_struct = isinstance(feature, dict) and "bytes" in feature
    if feature is None or is_struct or getattr(feature, "dtype", "") in ("binary", "large_binary"):
        return rows, column
    raise InputError(f"column {column!r} of {name} is no Image nor paths of images: name the one that is")


def _with_files(rows: Any, column: str, name: str, split: str) -> datasets.Dataset:
    if isinstance(rows, datasets.IterableDataset):
        raise InputError(f"column {column!r} of {name} holds paths: read it without streaming")
    root = Path(name).expanduser()
    root = root.parent if root.is_file() else root
    paths = [path or "" for path in rows[column]]
    first = list(filter(None, paths))[:_TRIED]
    places = (root / split, root, root.parent, Path())
    if (place := next((one for one in places if any((one / path).is_file() for path in first)), None)) is None:
        raise InputError(
            f"column {column!r} of {name} holds {(first or [''])[0]!r}, and no such file is below {root} nor the "
            "current folder: give paths relative to one of them, or images"
        )
    files = [place / path if path else None for path in paths]
    ids = [_below(root, file) if file else "" for file in files]
    rows = rows.remove_columns([column, *({"sample_id"} & set(rows.column_names))])
    images = [{"path": str(file) if file else None, "bytes": None} for file in files]
    return rows.add_column(column, images, feature=ENCODED).add_column("sample_id", ids)


def _below(root: Path, file: Path) -> str:
    return (file.relative_to(root) if file.is_relative_to(root) else file).as_posix()


def with_sample_ids(rows: datasets.Dataset, prefix: str) -> datasets.Dataset:
    """The rows with a `sample_id` each: their own, the key of a webdataset, or `PREFIX/ROW`.

    Raises:
        InputError: if a `sample_id` is there twice.
    """
    if "sample_id" in rows.column_names:
        if len(set(ids := list(rows["sample_id"]))) < len(ids):
            (twice, _), *_ = Counter(ids).most_common(1)
            raise InputError(f"the column sample_id holds {twice!r} twice: give every row an id of its own")
        is_text = rows.features["sample_id"] == datasets.Value("string")
        return rows if is_text else rows.cast_column("sample_id", datasets.Value("string"))
    keys = list(rows["__key__"]) if "__key__" in rows.column_names else []
    if not keys or len(set(keys)) < len(keys):
        keys = [f"{prefix}/{row}" for row in range(len(rows))]
    return rows.add_column("sample_id", keys)
