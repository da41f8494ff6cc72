"""What could not be read is left out, counted and listed: never fatal, never silent."""

import json
import os
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from peft_cbpt.data.decoding import UnreadableImage


@dataclass(frozen=True)
class Skipped:
    """A sample that was left out, and why; `label` is the class of a labelled image."""

    sample_id: str
    reason: str
    label: int | None = None

    def as_dict(self) -> dict[str, str]:
        """JSON-serialisable, without the label."""
        return {"sample_id": self.sample_id, "reason": self.reason}


class SkipLog:
    """Collects what was left out, in DataLoader workers too: they append to the same temporary file."""

    def __init__(self) -> None:
        handle, name = tempfile.mkstemp(suffix=".skipped.jsonl")
        os.close(handle)
        self._file = Path(name)
        weakref.finalize(self, _remove, self._file, os.getpid())

    def add(self, skipped: Skipped) -> None:
        """Note a sample; noting it again, as every epoch does, changes nothing."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(skipped)) + "\n")

    def entries(self) -> list[Skipped]:
        """Every sample left out so far, each once, in the order of their ids."""
        lines = self._file.read_text(encoding="utf-8").splitlines()
        found = {entry["sample_id"]: Skipped(**entry) for entry in map(json.loads, lines)}
        return [found[sample_id] for sample_id in sorted(found)]


def _remove(file: Path, owner: int) -> None:
    if os.getpid() == owner:  # forked workers drop their copies of the log, too
        file.unlink(missing_ok=True)


class OrSkipped(Dataset):
    """The rows of a map-style dataset of images, with a `Skipped` in the place of each that cannot be read."""

    def __init__(self, images: Dataset):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Any] | Skipped:
        try:
            return self.images[index]
        except UnreadableImage as error:
            return Skipped(error.sample_id, error.reason, error.label)


def collate_readable(rows: Sequence[dict[str, Any] | Skipped]) -> tuple[dict[str, Any] | None, list[Skipped]]:
    """Stack the rows that could be read, or None if none could, and list the others."""
    skipped = [row for row in rows if isinstance(row, Skipped)]
    read = [row for row in rows if not isinstance(row, Skipped)]
    if not read:
        return None, skipped
    batch = {
        "pixel_values": torch.stack([row["pixel_values"] for row in read]),
        "labels": torch.tensor([row["labels"] for row in read]),
        "sample_id": [row["sample_id"] for row in read],
    }
    return batch, skipped
