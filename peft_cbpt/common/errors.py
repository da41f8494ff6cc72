"""Errors that the command line prints as one line: the input's fault (exit code 2), or the Hub's (exit code 1)."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Something given by the user cannot be used; the message says what, where, and what to do."""


class HubError(RuntimeError):
    """The Hub could not be reached, or refused; the message says how to try again."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean NEAREST?` where a known word is near, else nothing."""
    near = get_close_matches(word, list(known), 1)
    return f", did you mean {near[0]}?" if near else ""
