"""Opening a dataset wherever it is: folders, tar archives, parquet, Arrow, CSV, the Hub. Images stay encoded."""

import csv
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from peft_cbpt.common.errors import InputError, first_line
from peft_cbpt.common.files import read_text
from peft_cbpt.data.columns import ENCODED, Rows, with_sample_ids
from peft_cbpt.data.folders import SPLIT_WORDS, files_by_class
from peft_cbpt.data.imagenet import HubCopy
from peft_cbpt.data.tars import read_tar_samples

logger = logging.getLogger(__name__)
_TABLES = (".csv", ".tsv", ".jsonl")


def open_source(name: str, split: str, streaming: bool = False) -> Rows:
    """Open one split of a dataset.

    Args:
        name: A folder of class folders, of webdataset archives, of parquet files, with a table of its images
            (`metadata.csv`, `train.csv`; .tsv and .jsonl too) or written by `save_to_disk`; one such archive, parquet
            file or table; or a Hub id.
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
    if table := next(_tables(path, split), None):
        return _open_table(table)
    return _open_class_folders(path, split)


def _tables(folder: Path, split: str) -> Iterator[Path]:
    """Tables of the images in a folder: `SPLIT/metadata.csv`, `SPLIT.csv`, `metadata.csv`, or with another suffix."""
    for stem in (f"{split}/metadata", split, "metadata"):
        yield from filter(Path.is_file, (folder / f"{stem}{suffix}" for suffix in _TABLES))


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
    return any(file.name.startswith(SPLIT_WORDS) for file in files)


def _open_files(files: Sequence[Path], root: Path, suffix: str, split: str, streaming: bool) -> Rows:
    if suffix == ".tar":
        return _open_tars(files, root)
    if suffix == ".parquet":
        names = {split: [str(file) for file in files]}
        return datasets.load_dataset("parquet", data_files=names, split=split, streaming=streaming)
    if suffix in _TABLES:
        return _open_table(files[0])
    raise InputError(f"{files[0]} is no .tar, .parquet, .csv, .tsv or .jsonl file: unpack or convert it")


_REST = "cells beyond the header"


def _open_tars(archives: Sequence[Path], root: Path) -> datasets.Dataset:
    samples = [sample for sample in read_tar_samples(archives, root) if sample.image or sample.texts]
    pictures = [sample for sample in samples if sample.image]
    if not pictures:
        raise InputError(f"{archives[0]} holds no images: give webdataset archives, or unpack it")
    texts = sorted({column for sample in pictures for column in sample.texts} - {"image", "sample_id"})
    by_folder = not {"label", "caption"} & set(texts)
    if by_folder:  # class folders, and perhaps a README
        samples = pictures
    columns: dict[str, list[Any]] = {
        "image": [{"path": sample.image, "bytes": None} if sample.image else None for sample in samples],
        "sample_id": [sample.sample_id for sample in samples],
    }
    features = {"image": ENCODED, "sample_id": datasets.Value("string")}
    for column in texts:
        columns[column] = [sample.texts.get(column) for sample in samples]
        features[column] = datasets.Value("string")
    if by_folder and any(sample.folder for sample in samples):
        columns["label"] = [sample.folder for sample in samples]
        features["label"] = datasets.ClassLabel(names=sorted(set(columns["label"])))
    elif by_folder:
        logger.warning(
            "%s: no image has a label or a caption, beside them are %s; labels are read from KEY.cls, KEY.json or "
            "class folders, captions from KEY.txt or KEY.json",
            archives[0],
            ", ".join(
                sorted(set().union(*(one.others for one in samples)) | {f"{text} in KEY.json" for text in texts})
            )
            or "no other files",
        )
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


class _Tabs(csv.excel_tab):
    """Tables whose cells end at tabs, whatever quotes are in them."""

    quoting = csv.QUOTE_NONE


def _open_table(file: Path) -> datasets.Dataset:
    """A table with a header, or of JSON lines, with values as they are written."""
    if file.suffix.lower() == ".jsonl":
        return datasets.Dataset.from_json(str(file))
    dialect: Any = csv.excel if file.suffix.lower() == ".csv" else _Tabs
    rows = list(csv.DictReader(io.StringIO(read_text(file), newline=""), restkey=_REST, dialect=dialect))
    if longer := [place for place, row in enumerate(rows, 1) if _REST in row]:
        raise InputError(f"row {longer[0]} of {file} has more cells than the header: put quotes around its caption")
    if not rows:
        raise InputError(f"{file} has no rows below its header")
    return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in rows[0]})


def _open_class_folders(folder: Path, split: str) -> datasets.Dataset:
    """A folder of class folders, or of `split` folders of class folders; sample ids are paths below `folder`."""
    images = files_by_class(folder, split)
    names = sorted({name for _, name in images})
    return datasets.Dataset.from_dict(
        {
            "image": [str(file) for file, _ in images],
            "label": [name for _, name in images],
            "sample_id": [file.relative_to(folder).as_posix() for file, _ in images],
        },
        features=datasets.Features(
            image=datasets.Image(), label=datasets.ClassLabel(names=names), sample_id=datasets.Value("string")
        ),
    )


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
