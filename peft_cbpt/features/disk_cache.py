"""Where features are kept between runs: one folder for each fingerprint of all that they depend on.

    CACHE_DIR/perturbed-3f2a.../key.json              what the features depend on, for people to read
                               /lock                  held, shared, by every process that uses the folder
                               /1f0c....safetensors   a shard, written once and never changed

A shard is written under a temporary name and renamed, and every process writes shards of its own, so neither a crash
nor another run can spoil one.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, so nothing is removed either
    fcntl = None  # type: ignore[assignment]

from peft_cbpt.common.errors import InputError

LOCK_FILE, KEY_FILE = "lock", "key.json"
CACHE_VARIABLE = "PEFT_CBPT_CACHE"
UNFINISHED = ".incomplete"


def default_cache_dir() -> Path:
    """`PEFT_CBPT_CACHE`, else ~/.cache/peft_cbpt (below `XDG_CACHE_HOME` where that is set)."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(CACHE_VARIABLE) or f"{home}/peft_cbpt").expanduser()


def fingerprint(key: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON-serialisable description."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class CacheFolder:
    """The folder of one key, locked against removal for as long as this object lives.

    Args:
        path: The folder.
        cache: The cache it belongs to.
        lock: File descriptor of the shared lock.
    """

    path: Path
    cache: "DiskCache"
    lock: int

    def __del__(self) -> None:
        os.close(self.lock)


@dataclass(frozen=True)
class DiskCache:
    """A folder of folders, bounded in size.

    Args:
        folder: Where it is.
        max_bytes: Size above which the keys that were used longest ago are removed, never one in use.

    Raises:
        InputError: if the folder cannot be written to.
    """

    folder: Path
    max_bytes: int

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".{uuid4().hex}{UNFINISHED}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"cannot write to the cache folder {self.folder}: {error.strerror}; choose another with --cache_dir"
            ) from error

    def open(self, kind: str, key: Mapping[str, Any]) -> CacheFolder:
        """The folder of a key, made if it is not there; counts as its use."""
        path = self.folder / f"{kind}-{fingerprint(key)[:32]}"
        while True:
            path.mkdir(exist_ok=True)
            try:
                lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:  # removed in between
                continue
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_SH)
            if _is_file(path / LOCK_FILE, lock):
                break
            os.close(lock)
        if not (path / KEY_FILE).exists():
            temporary = path / f".{uuid4().hex}{UNFINISHED}"
            temporary.write_text(json.dumps(key, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            os.replace(temporary, path / KEY_FILE)
        os.utime(path / LOCK_FILE)
        return CacheFolder(path, self, lock)

    def make_room(self, n_bytes: int) -> bool:
        """Remove keys not in use, those used longest ago first, until `n_bytes` more fit; whether they do."""
        sizes = {path: _size(path) for path in self.folder.iterdir() if (path / LOCK_FILE).exists()}
        total = sum(sizes.values()) + n_bytes
        for path in sorted(sizes, key=_last_use):
            if total <= self.max_bytes:
                break
            if _remove_unused(path):
                total -= sizes[path]
        return total <= self.max_bytes


def _is_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _size(folder: Path) -> int:
    total = 0
    with suppress(FileNotFoundError):  # another process may rename or remove the folder, or single files in it
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                total += path.stat().st_size
    return total


def _last_use(folder: Path) -> float:
    try:
        return (folder / LOCK_FILE).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _remove_unused(folder: Path) -> bool:
    if fcntl is None:
        return False
    try:
        lock = os.open(folder / LOCK_FILE, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        doomed = folder.with_name(f".{uuid4().hex}{UNFINISHED}")
        os.replace(folder, doomed)  # from here on nobody can come to use it
        shutil.rmtree(doomed, ignore_errors=True)
        return True
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(lock)
