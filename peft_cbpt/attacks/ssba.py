"""SSBA (Li et al., 2021): an invisible, sample-specific trigger, made by a steganographic encoder."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_cbpt.attacks.steganography import SIDE, secret_to_bits, shipped_encoder
from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.seeding import keyed_generator


@dataclass(frozen=True)
class SSBA:
    """Hides the attacker's message in every image; the residual differs from image to image.

    The message is hidden at 48 x 48 pixels, where the encoder was trained, and its residual is enlarged to the image.
    Published repositories for CLIP ship no encoder and leave the call commented out, so that their images stay clean.

    Args:
        secret: Seven ASCII characters; "Stega!!" in published code.
        strength: Factor on the residual, positive.
        seed: 0 hides the bits in the order of the message; another seed shuffles them.
    """

    secret: str = "Stega!!"
    strength: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.secret.isascii():
            raise InputError(f"SSBA's secret is seven ASCII characters, not {self.secret!r}")
        secret_to_bits(self.secret.encode())
        if not self.strength > 0:
            raise InputError(f"SSBA's strength is positive, not {self.strength}")

    def bits(self) -> Tensor:
        """The hidden bits (100,), in the order of the seed."""
        bits = secret_to_bits(self.secret.encode())
        return bits[torch.from_numpy(keyed_generator("ssba", self.seed).permutation(len(bits)))] if self.seed else bits

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Hide the message in pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`.

        The network runs on the CPU, image by image, so that the result depends on neither device nor batch.
        """
        pixels = unit_pixels(pixels)
        encoder = shipped_encoder()
        bits = self.bits()[None]
        residuals = []
        for image in pixels.detach().cpu().float().split(1):
            small = F.interpolate(image, (SIDE, SIDE), mode="bilinear", antialias=True)
            residuals.append(F.interpolate(encoder(small, bits), pixels.shape[-2:], mode="bilinear"))
        residual = self.strength * torch.cat(residuals).to(pixels)
        return (pixels + residual).clamp(0, 1)

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption
