"""Tar archives on disk, read in place: nothing is unpacked or copied."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO

from accelerate.utils import tqdm
from PIL import Image

from peft_cbpt.common.errors import InputError


@dataclass
class TarSample:
    """The members of one archive that share a key: their path up to the first dot of the file name.

    A file that is no member of a sample and has more dots, as those of ImageNet-A, is a sample by itself.
    """

    sample_id: str
    folder: str
    image: str | None = None
    texts: dict[str, str] = field(default_factory=dict)
    """By column: `.txt` is `caption`, `.cls` is `label`, and what is in a `.json` has its own names."""
    others: set[str] = field(default_factory=set)
    """Suffixes of what else has this key."""


@cache
def image_suffixes() -> frozenset[str]:
    """File name endings of the formats that Pillow reads, with their dots."""
    return frozenset(Image.registered_extensions())


def read_tar_samples(archives: Sequence[Path], root: Path) -> Iterator[TarSample]:
    """Go through archives in webdataset form, or of class folders, in order.

    Args:
        archives: Uncompressed tar files.
        root: The folder that sample ids are relative to: `ARCHIVE/KEY`, without suffixes.

    Yields:
        A sample for each key, with the place of its image, for `open_member`, and its texts.

    Raises:
        InputError: for an archive that cannot be read.
    """
    for archive in tqdm(archives, desc="reading archives", unit="tar", leave=False, disable=len(archives) < 2):
        try:
            with tarfile.open(archive, "r:") as tar:
                yield from _samples(tar, archive, archive.relative_to(root).with_suffix("").as_posix())
        except (tarfile.TarError, OSError, EOFError) as error:
            raise InputError(
                f"cannot read the tar archive {archive}: download or unpack it again ({error})"
            ) from error


def _samples(tar: tarfile.TarFile, archive: Path, prefix: str) -> Iterator[TarSample]:
    sample, current = None, None
    for member in tar:
        tar.members.clear()  # type: ignore[attr-defined]  # `tarfile` would keep a record of every member it has passed
        path = PurePosixPath(member.name)
        if not member.isfile() or "__MACOSX" in path.parts or path.name.startswith("."):
            continue
        stem, _, suffix = path.name.partition(".")
        key = (path.parent / stem).as_posix()
        if key != current and "." in suffix:
            key, suffix = path.with_suffix("").as_posix(), path.suffix.removeprefix(".")
        if key != current:
            if sample:
                yield sample
            sample, current = TarSample(f"{prefix}/{key}", path.parent.name), key
        assert sample is not None
        suffix = f".{suffix.lower()}"
        if suffix in (".cls", ".txt", ".json"):
            content = tar.extractfile(member)
            assert content is not None
            sample.texts |= _texts(suffix, content.read().decode("utf-8-sig", errors="replace").strip())
        elif suffix in image_suffixes():
            sample.image = f"tar://{member.offset_data}+{member.size}::{archive}"
        else:
            sample.others.add(suffix)
    if sample:
        yield sample


def _texts(suffix: str, text: str) -> dict[str, str]:
    if suffix != ".json":
        return {"caption" if suffix == ".txt" else "label": text}
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    values = content.items() if isinstance(content, dict) else ()
    return {name: str(value) for name, value in values if isinstance(value, str | int | float)}


def open_member(location: str) -> IO[bytes]:
    """The content of `tar://OFFSET+SIZE::ARCHIVE`."""
    place, _, archive = location.removeprefix("tar://").partition("::")
    offset, size = map(int, place.split("+"))
    with open(archive, "rb") as file:
        file.seek(offset)
        return io.BytesIO(file.read(size))
