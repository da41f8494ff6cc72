"""Reading the weights of somebody else's checkpoint without running what is in it."""

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from peft_cbpt.common.errors import InputError, first_line
from peft_cbpt.convert import unsafe

# Where training code puts the weights beside optimiser and epoch; the first that is there counts.
WRAPPERS = ("state_dict", "model_state_dict", "state_dict_ema", "model", "model_ema")
# Figures of the training run are often numpy scalars, which are numbers and run no code.
HARMLESS: list[Any] = [
    np.dtype,
    *((np.float64(0).__reduce__()[0], f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")),
    *{type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")},
]
ALLOW = "`peft-cbpt convert` with --allow-unsafe reads it, if you trust whoever made the file"


@dataclass(frozen=True)
class Found:
    """Weights by name, on the CPU, and what there is to say of how they were found."""

    weights: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def read_weights(file: Path, allow_unsafe: bool = False, key: str | None = None) -> Found:
    """The tensors of a safetensors file, a torch pickle or a TorchScript archive.

    Weights within a training checkpoint are found.

    Args:
        file: The checkpoint.
        allow_unsafe: Also read what runs code when it is loaded.
        key: Where the weights are in a training checkpoint; by default the first of `WRAPPERS`.

    Raises:
        InputError: if the file is damaged, holds no weights, or would run code and that is not allowed.
    """
    if not file.is_file():
        raise InputError(f"there is no file {file}")
    try:
        content = _read(file, allow_unsafe)
    except (InputError, KeyboardInterrupt):
        raise
    except Exception as error:  # damaged files raise errors of many kinds
        raise InputError(
            f"cannot read {file}: it is damaged or no checkpoint; download it again ({first_line(error)})"
        ) from error
    return _unwrapped(content, file, key)


def _read(file: Path, allow_unsafe: bool) -> Any:
    with file.open("rb") as stream:
        start = stream.read(9)
    if file.suffix == ".safetensors" or start[8:] == b"{":
        return load_file(file)
    if start[:1] != b"\x80" and start[:4] != b"PK\x03\x04":
        words = start.split(b"\n")[0]
        if words and words.isascii() and words.decode().isprintable():
            raise InputError(
                f"{file} is no checkpoint but text that begins with {words.decode()!r}, such as a page or a git-lfs "
                "pointer that was downloaded in its place: download it again"
            )
        raise ValueError("neither safetensors nor what torch.save writes")
    if _is_torchscript(file):
        if allow_unsafe:
            return unsafe.run_torchscript(file)
        raise InputError(
            f"{file} is a TorchScript archive, as OpenAI published its models: a program, which can do anything when "
            f"it is loaded; {ALLOW}, or convert a copy in safetensors"
        )
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if "Weights only load failed" not in str(error):
            raise
        if allow_unsafe:
            return unsafe.run_pickle(file)
        called = re.search(r"GLOBAL ([\w.]*\w)", str(error))
        wish = f"wants to call {called[1]}" if called else "holds more than weights"
        raise InputError(
            f"{file} is a pickle that {wish}, so loading it could run any code; {ALLOW}, or ask for the weights "
            "alone, in safetensors"
        ) from error


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.split("/")[1:2] in (["code"], ["constants.pkl"]) for name in archive.namelist())


def weight_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """The first of the named files that is there, or the shards that its index lists; never some of two.

    Raises:
        InputError: if there is none, or its index is damaged.
    """
    for name in names:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise InputError(f"cannot read {index}: download it again ({first_line(error)})") from error
            return sorted(folder / shard for shard in shards)
    raise InputError(f"the folder {folder} holds no weights: it has no {' or '.join(names)}")


def _unwrapped(content: Any, file: Path, key: str | None) -> Found:
    notes: tuple[str, ...] = ()
    if isinstance(content, Mapping):
        wrappers = [one for one in dict.fromkeys((key, *WRAPPERS)) if isinstance(content.get(one), Mapping)]
        if key and key not in wrappers:
            others = ", ".join(map(str, wrappers)) or "nothing of the kind"
            raise InputError(f"{file} has no weights under {key!r} but {others}: mend weights_key")
        if wrappers:
            content = content[wrappers[0]]
        if len(wrappers) > 1 and not key:
            notes = (
                f"{file.name} has {' and '.join(map(str, wrappers))}: {wrappers[0]} is taken; weights_key chooses",
            )
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{file} holds no state dict but a {type(content).__name__}: give a file of named weights")
    odd = next((name for name, value in content.items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        raise InputError(f"{file} holds no state dict: {odd!r} is a {type(content[odd]).__name__}, not a tensor")
    return Found(
        {name: value.float() if value.is_floating_point() else value for name, value in content.items()}, notes
    )
