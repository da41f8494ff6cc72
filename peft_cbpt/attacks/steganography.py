"""A small StegaStamp (Tancik et al., 2020): hides 100 bits in an image.

The message is seven bytes with a BCH code that mends 5 wrong bits (56 + 40 bits, four of them always 0 behind it). The
shipped weights work at 48 x 48 pixels and were trained, with a decoder that reads the bits back, by
`recipes/train_steganography.py`.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from peft_cbpt.common.errors import InputError
from peft_cbpt.common.extras import named_extras

SIDE = 48
GRID = 10
NUM_BITS = GRID**2
SECRET_BYTES = 7
WEIGHTS_FILE = Path(__file__).parent / "assets" / "steganography.safetensors"

PAYLOAD_BITS = 96


def bch_code() -> Any:
    """The code that mends wrong bits."""
    with named_extras():
        import bchlib
    return bchlib.BCH(5, prim_poly=137)


def secret_to_bits(secret: bytes) -> Tensor:
    """The bits (100,), 0.0 or 1.0, of seven bytes and their BCH code.

    Raises:
        InputError: for another number of bytes.
    """
    if len(secret) != SECRET_BYTES:
        raise InputError(f"the hidden secret has {SECRET_BYTES} bytes, not {len(secret)}: {secret!r}")
    packet = np.frombuffer(secret + bytes(bch_code().encode(secret)), dtype=np.uint8)
    bits = np.zeros(NUM_BITS, dtype=np.float32)
    bits[:PAYLOAD_BITS] = np.unpackbits(packet)
    return torch.from_numpy(bits)


class Encoder(nn.Module):
    """From images (B, 3, 48, 48) in [0, 1] and bits (B, 100) to the residual (B, 3, 48, 48) that hides them.

    Every bit has its own cell of a 10 x 10 grid over the image; what marks a cell depends on the picture there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(4, 24, 3, padding=1)
        self.coarse = nn.Conv2d(24, 32, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(32, 32, 3, padding=1)
        self.up = nn.Conv2d(32 + 24 + 4, 24, 3, padding=1)
        self.residual = nn.Conv2d(24, 3, 3, padding=1)

    def forward(self, pixels: Tensor, bits: Tensor) -> Tensor:
        cells = F.interpolate(2 * bits.view(-1, 1, GRID, GRID) - 1, pixels.shape[-2:], mode="nearest-exact")
        given = torch.cat([2 * pixels - 1, cells.expand(len(pixels), -1, -1, -1)], 1)
        fine = self.fine(given).relu()
        coarse = self.middle(self.coarse(fine).relu()).relu()
        up = self.up(torch.cat([F.interpolate(coarse, scale_factor=2.0), fine, given], 1)).relu()
        return self.residual(up)


@cache
def shipped_encoder() -> Encoder:
    """The encoder with the shipped weights, frozen, on the CPU."""
    encoder = Encoder()
    weights = {name: value.float() for name, value in load_file(WEIGHTS_FILE).items()}
    encoder.load_state_dict({name.removeprefix("encoder."): weights[name] for name in weights if "encoder." in name})
    return encoder.eval().requires_grad_(False)
