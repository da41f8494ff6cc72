"""Reading the weights of somebody else's checkpoint without running what is in it."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from peft_cbpt.common.errors import InputError, first_line
from peft_cbpt.convert import unsafe

# Where training code puts the weights beside optimiser and epoch; the first that is there counts.
WRAPPERS = ("state_dict", "model_state_dict", "state_dict_ema", "model")
# What parallel training, torch.compile, Lightning and wrapping modules put before every name, in any order.
PREFIXES = ("module.", "_orig_mod.", "model.", "clip_model.")
# Figures of the training run are often numpy scalars, which are numbers and run no code.
HARMLESS: list[Any] = [
    np.dtype,
    *((np.float64(0).__reduce__()[0], f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")),
    *{type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")},
]
ALLOW = "`peft-cbpt convert` with --allow-unsafe reads it, if you trust whoever made the file"


def read_weights(file: Path, allow_unsafe: bool = False) -> dict[str, Tensor]:
    """The tensors of a safetensors file, a torch pickle or a TorchScript archive, by name, on the CPU.

    Weights within a training checkpoint are found, and `PREFIXES` are taken off the names.

    Args:
        file: The checkpoint.
        allow_unsafe: Also read what runs code when it is loaded.

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
    return _unwrapped(content, file)


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


def _unwrapped(content: Any, file: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{file} holds no state dict but a {type(content).__name__}: give a file of named weights")
    odd = next((name for name, value in content.items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        raise InputError(f"{file} holds no state dict: {odd!r} is a {type(content[odd]).__name__}, not a tensor")
    weights = dict(content)
    while prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in weights)), None):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
