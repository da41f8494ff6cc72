"""Where features are kept between runs: one safetensors file for each fingerprint of all that they depend on."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from peft_cbpt.common.errors import InputError
from peft_cbpt.features.store import FeatureStore

CACHE_VARIABLE = "PEFT_CBPT_CACHE"


def default_cache_dir() -> Path:
    """`PEFT_CBPT_CACHE`, else ~/.cache/peft_cbpt (below `XDG_CACHE_HOME` where that is set)."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(CACHE_VARIABLE) or f"{home}/peft_cbpt").expanduser()


def fingerprint(key: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON-serialisable description."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class FeatureCache:
    """A folder of `KIND-FINGERPRINT.safetensors`; files are replaced whole, so that runs may share it without locks.

    Args:
        folder: Where it is; None keeps everything in memory.
        max_bytes: Size above which the files that were used longest ago are removed.

    Raises:
        InputError: if the folder cannot be written to.
    """

    folder: Path | None
    max_bytes: int

    def __post_init__(self) -> None:
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise InputError(
                f"cannot write to the feature cache {self.folder}: {error.strerror}; choose another with "
                "--feature_cache_dir"
            ) from error

    def open(self, kind: str, key: Mapping[str, Any]) -> FeatureStore:
        """What is kept of a key; counts as its use, and what was used longest ago makes room for it."""
        if self.folder is None:
            return FeatureStore()
        file = self.folder / f"{kind}-{fingerprint(key)[:32]}.safetensors"
        with suppress(FileNotFoundError):
            os.utime(file)
        self._make_room(file)
        return FeatureStore(file, json.dumps(key, sort_keys=True))

    def _make_room(self, wanted: Path) -> None:
        assert self.folder is not None
        files = []
        for file in self.folder.glob("*.safetensors"):
            with suppress(FileNotFoundError):  # another run may remove it, too
                files.append((file.stat().st_mtime, file.stat().st_size, file))
        excess = sum(size for _, size, _ in files) - self.max_bytes
        for _, size, file in sorted(files):
            if excess > 0 and file != wanted:
                file.unlink(missing_ok=True)
                excess -= size
