"""The one place that runs code from a checkpoint, and only when the user has allowed it.

A pickle and a TorchScript archive are programs. Nothing else in the package loads either (`tests/test_layers.py`).
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def run_pickle(file: Path) -> Any:
    """What a pickle builds. It can run any code while it does."""
    return torch.load(file, map_location="cpu", weights_only=False)


def run_torchscript(file: Path) -> dict[str, Tensor]:
    """The weights of a TorchScript archive, whose code is compiled and may run."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        return torch.jit.load(file, map_location="cpu").state_dict()
