"""Errors that the command line prints as one line: of the input (exit code 2), the Hub (1), or the machine (4)."""

import errno
from collections.abc import Iterable
from difflib import get_close_matches

_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
_DISK_WORDS = (
    *("No space left", "StorageFull", "Disk quota exceeded", "Read-only file system"),
    *("inline_container", "PytorchStreamWriter"),  # `torch.save`
)


class InputError(ValueError):
    """Something given by the user cannot be used; the message says what, where, and what to do."""


class HubError(RuntimeError):
    """The Hub could not be reached, or refused; the message says how to try again."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def machine_fault(error: BaseException | None) -> str | None:
    """One line if an error, or one that led to it, is the machine's: a full disk, no memory, a killed worker.

    Libraries pass on what the system said in errors of their own.
    """
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number in _DISK_FAULTS or any(words in str(error) for words in _DISK_WORDS):
            return (
                f"the disk cannot be written to ({first_line(error)}): files under their own names are whole; make "
                "room and run again"
            )
        if isinstance(error, MemoryError) or "out of memory" in str(error):
            return f"memory ran out ({first_line(error)}): make batches smaller or use a larger machine"
        if "DataLoader worker" in str(error):
            return f"a process that reads images ended ({first_line(error)}): use fewer, memory may have run out"
        error = error.__cause__ or error.__context__
    return None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean NEAREST?` where a known word is near, else nothing."""
    near = get_close_matches(word, list(known), 1)
    return f", did you mean {near[0]}?" if near else ""
