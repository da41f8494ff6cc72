"""Opening a dataset wherever it is: folders, tar archives, parquet, Arrow, CSV, the Hub. Images stay encoded."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from peft_cbpt.common.errors import InputError, first_line
from peft_cbpt.data.imagenet import HubCopy
from peft_cbpt.data.tars import image_suffixes, read_tar_samples

# What webdataset and caption corpora call the columns that we call by one name.
OTHER_NAMES = {"image": ("jpg", "jpeg", "png", "webp"), "label": ("cls",), "caption": ("text", "txt")}
_SPLIT_WORDS = ("train", "test", "val", "validation", "dev")
_ENCODED = datasets.Image(decode=False)

Rows: TypeAlias = "datasets.Dataset | datasets.IterableDataset"


def open_source(name: str, split: str, streaming: bool = False) -> Rows:
    """Open one split of a dataset.

    Args:
        name: A folder of class folders, of webdataset archives, of parquet files or written by `save_to_disk`; one
            such archive or parquet file; a CSV or TSV file; or a Hub id.
        split: Name of the split.
        streaming: Read parquet files and Hub datasets row by row instead of preparing them first. The others are read
            in place anyway.

    Returns:
        Rows with the dataset's own columns. All but streams have a `sample_id`: the path for files, `ARCHIVE/KEY` for
        archives, a column of this name if there is one, the key of a webdataset from the Hub, `SPLIT/ROW` otherwise,
        or `rows/ROW` where every split has the same rows.

    Raises:
        InputError: if there is no such dataset or split, or it cannot be reached.
    """
    try:
        path = Path(name).expanduser()
        rows = _open_path(path, split, streaming) if path.exists() else _open_hub(name, split, streaming)
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{name} has no split {split!r}") from error
    except Exception as error:  # `datasets` raises many kinds for the same mistakes
        raise InputError(_reason(name, split, error)) from error
    if streaming and isinstance(rows, datasets.IterableDataset):
        return rows
    return with_sample_ids(rows, row_prefix(name, split))


def row_prefix(name: str, split: str) -> str:
    """What is before the number of a row in its sample id: the split, or `rows` where every split has the same rows.

    Those are a single file, a saved `Dataset`, and parquet files not named after splits. So rows that are used
    twice, to train and to test, have the same ids.
    """
    path = Path(name).expanduser()
    if not path.exists():
        return split
    parquet = [] if path.is_file() or any((path / split).glob("*.parquet")) else _loose_files(path, ".parquet")
    has_none = path.is_file() or (path / "state.json").exists() or (parquet and not _named_after_splits(parquet))
    return "rows" if has_none else split


def open_hub_copy(copy: HubCopy, split: str, streaming: bool = False) -> Rows:
    """Open a known copy of an ImageNet on the Hub; as `open_source`."""
    if split not in copy.splits:
        raise InputError(f"{copy.hub_id} has no split {split!r} but {', '.join(copy.splits)}")
    theirs = copy.splits[split]
    if not copy.is_tars:
        return open_source(copy.hub_id, theirs, streaming)
    archives = {theirs: f"hf://datasets/{copy.hub_id}/{theirs}/*.tar"}
    try:
        rows = datasets.load_dataset("webdataset", data_files=archives, split=theirs, streaming=streaming)
    except Exception as error:
        raise InputError(_reason(copy.hub_id, split, error)) from error
    return rows if streaming else with_sample_ids(rows, split)


def find_column(columns: Sequence[str], wanted: str, dataset_name: str) -> str:
    """The column of this name, or the one that webdatasets have in its place.

    Raises:
        InputError: if there is neither.
    """
    for column in (wanted, *OTHER_NAMES.get(wanted, ())):
        if column in columns:
            return column
    raise InputError(f"{dataset_name} has no column {wanted!r} but {', '.join(columns)}")


def keep_encoded(rows: Rows, image_column: str, dataset_name: str) -> Rows:
    """The same rows with images as they are stored, to be decoded by `decoding.read_image`."""
    if rows.features is None:
        return rows
    feature = rows.features[image_column]
    if not (isinstance(feature, datasets.Image) or _is_encoded_image(feature)):
        raise InputError(
            f"column {image_column!r} of {dataset_name} is no Image: name the one of images, or cast it with "
            "dataset.cast_column"
        )
    return rows.cast_column(image_column, _ENCODED) if isinstance(feature, datasets.Image) else rows


def _is_encoded_image(feature: Any) -> bool:
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def _open_hub(name: str, split: str, streaming: bool) -> Rows:
    return datasets.load_dataset(name, split=split, streaming=streaming)


def _open_path(path: Path, split: str, streaming: bool) -> Rows:
    if path.is_file():
        return _open_files([path], path.parent, path.suffix.lower(), split, streaming)
    if (path / "dataset_dict.json").exists():
        return datasets.load_from_disk(str(path))[split]
    if (path / "state.json").exists():
        return datasets.load_from_disk(str(path))
    for suffix in (".tar", ".parquet"):
        if files := _files_of_split(path, split, suffix):
            return _open_files(files, path, suffix, split, streaming)
    return _open_class_folders(path, split)


def _files_of_split(folder: Path, split: str, suffix: str) -> list[Path]:
    """Files in the split's own folder, or in `folder` or its `data` named after the split; unnamed ones are any's."""
    if inside := sorted((folder / split).glob(f"*{suffix}")):
        return inside
    files = _loose_files(folder, suffix)
    if not _named_after_splits(files):
        return files
    if named := [file for file in files if file.name.startswith(split)]:
        return named
    raise InputError(f"{folder} has no split {split!r} but {', '.join(file.name for file in files[:5])}")


def _loose_files(folder: Path, suffix: str) -> list[Path]:
    return sorted([*folder.glob(f"*{suffix}"), *folder.glob(f"data/*{suffix}")])


def _named_after_splits(files: Sequence[Path]) -> bool:
    return any(file.name.startswith(_SPLIT_WORDS) for file in files)


def _open_files(files: Sequence[Path], root: Path, suffix: str, split: str, streaming: bool) -> Rows:
    if suffix == ".tar":
        return _open_tars(files, root)
    if suffix == ".parquet":
        names = {split: [str(file) for file in files]}
        return datasets.load_dataset("parquet", data_files=names, split=split, streaming=streaming)
    if suffix in (".csv", ".tsv"):
        return _open_table(files[0], "," if suffix == ".csv" else "\t")
    raise InputError(f"{files[0]} is no .tar, .parquet, .csv or .tsv file: unpack or convert it")


_TEXTS = (("txt", "caption"), ("cls", "label"))
_REST = "cells beyond the header"


def _open_tars(archives: Sequence[Path], root: Path) -> datasets.Dataset:
    samples = [sample for sample in read_tar_samples(archives, root) if sample.image or sample.texts]
    pictures = [sample for sample in samples if sample.image]
    if not pictures:
        raise InputError(f"{archives[0]} holds no images: give webdataset archives, or unpack it")
    texts = [(suffix, column) for suffix, column in _TEXTS if any(suffix in sample.texts for sample in pictures)]
    if not texts:  # class folders, and perhaps a README
        samples = pictures
    columns: dict[str, list[Any]] = {
        "image": [{"path": sample.image, "bytes": None} if sample.image else None for sample in samples],
        "sample_id": [sample.sample_id for sample in samples],
    }
    features = {"image": _ENCODED, "sample_id": datasets.Value("string")}
    for suffix, column in texts:
        columns[column] = [sample.texts.get(suffix) for sample in samples]
        features[column] = datasets.Value("string")
    if not texts:
        columns["label"] = [sample.folder for sample in samples]
        features["label"] = datasets.ClassLabel(names=sorted(set(columns["label"])))
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


class _Tabs(csv.excel_tab):
    """Tables whose cells end at tabs, whatever quotes are in them."""

    quoting = csv.QUOTE_NONE


def _open_table(file: Path, delimiter: str) -> datasets.Dataset:
    """A table with a header; what looks like a path in its image column is taken from the table's folder."""
    dialect: Any = csv.excel if delimiter == "," else _Tabs
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.DictReader(lines, restkey=_REST, dialect=dialect))
    if longer := [place for place, row in enumerate(rows, 1) if _REST in row]:
        raise InputError(f"row {longer[0]} of {file} has more cells than the header: put quotes around its caption")
    if not rows:
        raise InputError(f"{file} has no rows below its header")
    return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in rows[0]})


def _open_class_folders(folder: Path, split: str) -> datasets.Dataset:
    """A folder of class folders, or of `split` folders of class folders; sample ids are paths below `folder`."""
    root = folder / split if (folder / split).is_dir() else folder
    class_folders = _folders(root)
    if not class_folders:
        raise InputError(f"{root} holds no class folders: put the images of each class into a folder of its name")
    images: list[tuple[Path, str]] = []
    for class_folder in class_folders:
        files = [path for path in sorted(class_folder.iterdir()) if path.suffix.lower() in image_suffixes()]
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


def _reason(name: str, split: str, error: Exception) -> str:
    line = first_line(error)
    if "gated" in str(error).lower():
        return (
            f"the dataset {name} is gated: accept its terms on its page on the Hub, log in with `hf auth login`, and "
            f"try again, or give a local copy ({line})"
        )
    return (
        f"cannot load split {split!r} of the dataset {name!r}: give a folder of class folders, archives or parquet "
        f"files, a saved Dataset, or a Hub id that can be reached ({line})"
    )
