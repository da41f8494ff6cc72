"""What the records of all runs hold: when and with what they were made, seconds by stage, memory."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import torch

from peft_cbpt.common.versions import package_versions, source_commit

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


def made_now() -> dict[str, Any]:
    """`date` (UTC, ISO 8601), `versions` of the libraries and of this package, and its `commit` or None."""
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"date": date, "versions": package_versions(), "commit": source_commit()}


class Stopwatch:
    """Wall-clock seconds by stage: `with stopwatch("load"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the block as `stage`, which the package's logger names as it begins."""
        logger.info(stage)
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 2)


def peak_memory_bytes(device: torch.device) -> dict[str, int]:
    """Largest resident memory of this process, where the system tells it, and on a GPU largest memory torch held."""
    peak = {}
    if resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024
        peak["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak | {"gpu": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else peak
