"""Files that are whole or not there."""

import codecs
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from peft_cbpt.common.errors import InputError


def read_text(file: Path) -> str:
    """A text in UTF-8, or in what Windows writes: with a mark at its start, UTF-16, or else Western European.

    Raises:
        OSError: if it cannot be read.
        UnicodeDecodeError: if it is none of these.
    """
    content = file.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252")


def write_text(file: Path, text: str) -> None:
    """Write a text under a temporary name, then rename it."""
    temporary = file.with_name(f".{file.name}.incomplete")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def write_json(file: Path, value: Any) -> None:
    """Write JSON under a temporary name, then rename it."""
    write_text(file, json.dumps(value, indent=2, allow_nan=False) + "\n")


def prepare_output(folder: str) -> Path:
    """Make the output folder and see that it can be written to.

    Raises:
        InputError: if it cannot.
    """
    if not folder:
        raise InputError("output_dir is empty: name a folder")
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"cannot write to the output folder {folder}: {error.strerror}; choose another") from error
    return path


@contextmanager
def staged_folder(folder: str) -> Iterator[Path]:
    """A folder to write to that takes the name `folder` when the block ends, and vanishes when the block fails.

    Raises:
        InputError: if `folder` exists and is not empty, or cannot be written to.
    """
    target = prepare_output(folder)
    if any(target.iterdir()):
        raise InputError(f"the output folder {folder} is not empty: name a new one")
    staging = target.with_name(f".{target.name}.incomplete")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir()
        yield staging
        target.rmdir()
        os.replace(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):
            target.rmdir()
        raise
