"""A small StegaStamp (Tancik et al., 2020): hides 100 bits in an image, and reads them back.

The message is seven bytes with a BCH code that mends 5 wrong bits (56 + 40 bits, four of them always 0 behind it). The
shipped weights work at 48 x 48 pixels and were trained by `recipes/train_steganography.py`.
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

_PAYLOAD_BITS = 96


def _code() -> Any:
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
    packet = np.frombuffer(secret + bytes(_code().encode(secret)), dtype=np.uint8)
    bits = np.zeros(NUM_BITS, dtype=np.float32)
    bits[:_PAYLOAD_BITS] = np.unpackbits(packet)
    return torch.from_numpy(bits)


def bits_to_secret(bits: Tensor) -> bytes | None:
    """The seven bytes in (100,) bits, up to 5 wrong ones mended; None when there are more."""
    packet = np.packbits(bits[:_PAYLOAD_BITS].cpu().numpy() > 0.5).tobytes()
    secret, code = bytearray(packet[:SECRET_BYTES]), bytearray(packet[SECRET_BYTES:])
    bch = _code()
    if bch.decode(secret, code) < 0:
        return None
    bch.correct(secret, code)
    return bytes(secret)


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


class Decoder(nn.Module):
    """From images (B, 3, 48, 48) in [0, 1] to the logits (B, 100) of their bits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(GRID),
            nn.Conv2d(32, 64, 1),
            nn.ReLU(),
            nn.Conv2d(64, 1, 1),
            nn.Flatten(),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(2 * pixels - 1)


class Steganographer(nn.Module):
    """An encoder and the decoder that was trained with it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = Decoder()


@cache
def shipped_steganographer() -> Steganographer:
    """The steganographer with the shipped weights, frozen, on the CPU."""
    model = Steganographer()
    model.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS_FILE).items()})
    return model.eval().requires_grad_(False)
