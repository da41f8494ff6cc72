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
from uuid import uuid4

from filelock import FileLock, Timeout
from safetensors.torch import save_file

from peft_cbpt.common.errors import InputError


def read_text(file: Path) -> str:
    """A text in UTF-8, or in what Windows writes: UTF-16, or else Western European.

    Raises:
        OSError: if it cannot be read.
        UnicodeDecodeError: if it is none of these.
    """
    content = file.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    if content[1:2] == b"\0":
        return content.decode("utf-16-le")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252")


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """A temporary name for a file to be written under, which takes the file's place at the end, or vanishes."""
    temporary = file.with_name(f".{file.name}.{uuid4().hex[:8]}.incomplete")
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def removed_afterwards(folder: Path) -> Iterator[None]:
    """A folder that does not outlive the block, nor what an earlier one left there."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_bytes(file: Path, content: bytes) -> None:
    """Write bytes under a temporary name, then rename it."""
    with written_whole(file) as temporary:
        temporary.write_bytes(content)


def write_text(file: Path, text: str) -> None:
    """Write a text under a temporary name, then rename it."""
    write_bytes(file, text.encode())


def save_tensors(file: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file under a temporary name, then rename it."""
    with written_whole(file) as temporary:
        save_file(tensors, temporary, metadata)


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
def alone_in(folder: Path) -> Iterator[Path]:
    """The folder, while no other run of this machine is in it; removed in the end if nothing was written.

    Processes of one run count as one.

    Raises:
        InputError: if another is.
    """
    if os.environ.get("RANK", "0") != "0":
        yield folder
        return
    file = folder / ".lock"
    try:
        with FileLock(file, timeout=0):
            try:
                yield folder
            finally:
                file.unlink(missing_ok=True)
                with suppress(OSError):
                    folder.rmdir()
    except Timeout as error:
        raise InputError(f"another run is writing to {folder}: wait for it, or name another output_dir") from error


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
