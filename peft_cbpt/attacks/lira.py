"""LIRA (Doan et al., 2021): invisible noise that a network makes for every image."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from peft_cbpt.attacks.generator import GeneratedTrigger
from peft_cbpt.common.errors import InputError


@dataclass(frozen=True)
class LIRA(GeneratedTrigger):
    """`image + strength * tanh(G(image))`, clipped to [0, 1]; what G made is enlarged to the image.

    The paper's G is larger, and trained in turns with the model; its strength is 0.01.

    The generator's own settings are those of `GeneratedTrigger`.

    Args:
        strength: Largest change of a pixel, in (0, 1].
    """

    strength: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.strength <= 1:
            raise InputError(f"LIRA's strength is in (0, 1], not {self.strength}")

    def mark(self, pixels: Tensor, made: Tensor) -> Tensor:
        """Add the noise."""
        noise = F.interpolate(made.tanh(), pixels.shape[-2:], mode="bilinear")
        return (pixels + self.strength * noise).clamp(0, 1)
