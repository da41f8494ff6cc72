"""The classes of the photographs, those of Tiny-ImageNet."""

from functools import cache
from pathlib import Path

CLASSES_FILE = Path(__file__).parent / "assets" / "classes.tsv"


@cache
def names_by_wnid() -> dict[str, str]:
    """From the WordNet id of a class to its name, in label order."""
    lines = CLASSES_FILE.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines if not line.startswith("#"))
