"""What a job will cost, told before it begins: images counted by a stand-in for the tower, seconds by a few passes."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage

SIDE = 16
"""Of the images (3, SIDE, SIDE) that a job is rehearsed on; how many there are counts, not their size."""


@dataclass
class CountingEncoder:
    """Takes the place of an image encoder in a rehearsal: counts images, and gives features (B, D) of their pixels."""

    dimension: int
    forward: int = 0
    """Images encoded."""
    backward: int = 0
    """Of these, the images that a gradient was wanted of."""
    _weights: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._weights = torch.randn(12, self.dimension, generator=torch.Generator().manual_seed(0))

    def __call__(self, pixels: Tensor) -> Tensor:
        """See `clip.pixels.image_encoder`."""
        self.forward += len(pixels)
        self.backward += len(pixels) if pixels.requires_grad else 0
        return F.normalize(F.adaptive_avg_pool2d(pixels.cpu(), 2).flatten(1) @ self._weights, dim=1)

    def minutes(self, encode_image: EncodeImage, pixels: Tensor) -> float:
        """How long the true encoder takes for as many images, from passes of a few `pixels` (B, 3, H, W)."""
        with torch.no_grad():
            forward = seconds_of(lambda: encode_image(pixels))
        both = seconds_of(lambda: encode_image(pixels.clone().requires_grad_()).sum().backward())
        return ((self.forward - self.backward) * forward + self.backward * both) / len(pixels) / 60


@dataclass(frozen=True)
class Plan:
    """A job, before it begins.

    Args:
        images: How many are read, by what they are for.
        encoded: Images through the image tower, those with a gradient counted once.
        with_gradient: Of these, those that a gradient to the pixels is wanted of.
        steps: Of training.
        minutes: Estimated.
        memory_gb: Estimated largest resident memory, in 10^9 bytes.
        output_dir: Where it would be written.
    """

    images: dict[str, int]
    encoded: int
    with_gradient: int
    steps: int
    minutes: float
    memory_gb: float
    output_dir: str

    def __str__(self) -> str:
        images = ", ".join(f"{count:,} {what}" for what, count in self.images.items())
        lines = [
            f"images:           {images}",
            f"image tower:      {self.encoded:,} passes of an image, {self.with_gradient:,} of them with a gradient",
            f"training steps:   {self.steps:,}",
            f"estimated time:   {self.minutes:.1f} minutes on this machine, without what the cache has",
            f"estimated memory: {self.memory_gb:.1f} GB",
            f"output:           {self.output_dir}",
        ]
        return "\n".join(lines)


def seconds_of(call: Callable[[], object], times: int = 2) -> float:
    """Seconds of a call, the shortest of a few after one that warms up."""
    taken = []
    for _ in range(1 + times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])
