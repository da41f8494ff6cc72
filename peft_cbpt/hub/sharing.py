"""What must not leave this machine: paths, and tokens."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

from peft_cbpt.data.imagenet import find_variant

_PATH = re.compile(r"(/|~|\.{1,2}/|[A-Za-z]:[\\/])")
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")


def is_local(name: str) -> bool:
    """Whether a name is a path of this machine, or `SHORT_NAME:PATH` of an ImageNet, and no Hub id."""
    return bool(_PATH.match(name)) or _copy_of(name) or ("/" in name and Path(name).exists()) or Path(name).is_dir()


def _copy_of(name: str) -> bool:
    found = find_variant(name)
    return found is not None and isinstance(found[1], str)


def without_local_paths(value: Any) -> Any:
    """Copy of a JSON value in which every string that is a path of this machine is cut to its last part.

    Of `SHORT_NAME:PATH` the short name stays.
    """
    if isinstance(value, Mapping):
        return {key: without_local_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_local_paths(inner) for inner in value]
    if isinstance(value, str) and len(value) < 4096 and is_local(value):
        short_name = value.partition(":")[0] + ":" if _copy_of(value) else ""
        return short_name + (re.split(r"[\\/]", value.removeprefix(short_name).rstrip("\\/"))[-1] or value)
    return value


def shareable(results: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of what purify measured without paths of this machine.

    Only the model and the settings hold names as they were given. The rest is left as it is: sample ids may be paths
    below the dataset, and the text of a patch may start like a path.
    """
    given = ("model", "settings")
    return {name: without_local_paths(value) if name in given else value for name, value in results.items()}


def find_leaks(files: Mapping[str, bytes], folder: Path) -> Iterator[str]:
    """Names of files that hold a path of this machine or a token.

    Args:
        files: Contents by name.
        folder: Where the files lie; its path is looked for, with those of the home, working and temporary folders.
    """
    places = {Path.home(), Path.cwd(), Path(tempfile.gettempdir()), folder.resolve()}
    patterns = [
        re.compile(rb"(?<![\w.-])" + re.escape(str(place).encode()) + rb"(?![\w.-])")
        for place in places
        if len(place.parts) > 1
    ]
    if token := get_token():
        patterns.append(re.compile(re.escape(token.encode())))
    for name, content in files.items():
        if any(pattern.search(content) for pattern in [_TOKEN, *patterns]):
            yield name
