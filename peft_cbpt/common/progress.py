"""Progress where nobody watches: one line a stage in place of bars, which would fill a log file."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


class _Line(logging.Formatter):
    """A stage as it is, and what is no stage marked as a warning."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.WARNING:
            record.message = f"warning: {record.message}"
        return super().formatMessage(record)


@contextmanager
def stages_instead_of_bars() -> Iterator[None]:
    """Where stderr is no terminal: no bar of tqdm within the block, the first process says what begins, once each."""
    if sys.stderr.isatty():
        yield
        return
    bar_class: Any = tqdm
    logger = logging.getLogger("peft_cbpt")
    level, with_bar = logger.level, bar_class.__init__
    handler = logging.StreamHandler()
    handler.setFormatter(_Line("%(asctime)s %(message)s", "%H:%M:%S"))
    if os.environ.get("LOCAL_RANK", "0") == "0":
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    said = set()

    def without_bar(
        self: Any, *args: Any, desc: str | None = None, disable: bool | None = False, **kwargs: Any
    ) -> None:
        if desc and not disable and desc not in said:
            said.add(desc)
            logger.info("  %s", desc)
        with_bar(self, *args, desc=desc, disable=True, **kwargs)

    bar_class.__init__ = without_bar
    try:
        yield
    finally:
        bar_class.__init__ = with_bar
        logger.removeHandler(handler)
        logger.setLevel(level)
