"""How an attack's JSON holds what was optimised: a square of RGB cells as base64 of 8-bit values."""

import base64
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from peft_cbpt.common.errors import InputError

Kind = Literal["patch", "perturbation"]
"""A patch's cells are in [0, 1]; a perturbation's are changes of them, with a sign and of at most 127 / 255."""
_LEVELS: dict[Kind, type[np.generic]] = {"patch": np.uint8, "perturbation": np.int8}


def store_cells(cells: Tensor, kind: Kind) -> str:
    """Cells (3, s, s), rounded to levels of 1 / 255."""
    levels = (cells.permute(1, 2, 0) * 255).round().cpu().numpy().astype(_LEVELS[kind])
    return base64.b64encode(levels.tobytes()).decode()


def stored_cells(text: str, kind: Kind) -> Tensor:
    """What `store_cells` stored, (3, s, s).

    Raises:
        InputError: if the text is no base64 of a square of RGB cells.
    """
    try:
        levels = np.frombuffer(base64.b64decode(text, validate=True), _LEVELS[kind])
        side = round((len(levels) / 3) ** 0.5)
        levels = levels.reshape(side, side, 3)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"a stored {kind} is the base64 text of a square of 8-bit RGB cells; this one is not"
        ) from error
    return torch.from_numpy(levels.astype(np.float32)).permute(2, 0, 1) / 255
