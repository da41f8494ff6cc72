"""What a job will cost, told before it begins from the images it will encode and a few passes that are timed."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.common.records import peak_memory_bytes


@dataclass(frozen=True)
class Passes:
    """Of single images through the image tower: without and with a gradient."""

    forward: int = 0
    gradient: int = 0

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(self.forward + other.forward, self.gradient + other.gradient)


@dataclass(frozen=True)
class Plan:
    """A job before it begins.

    Args:
        images: How many there are of which kind.
        passes: Through the image tower, about; what the feature cache has is not encoded again.
        steps: Of training.
        minutes: Estimated, without starting up and reading.
        memory_gb: Largest memory of the passes that were timed, in 10^9 bytes, by where: `process`, `gpu`.
    """

    images: Mapping[str, int]
    passes: Passes
    steps: int
    minutes: float
    memory_gb: Mapping[str, float]

    def __str__(self) -> str:
        images = ", ".join(f"{count:,} {kind}" for kind, count in self.images.items())
        memory = ", ".join(f"{size:.1f} GB ({where})" for where, size in self.memory_gb.items())
        lines = (
            f"images       {images}",
            f"image tower  {self.passes.forward:,} passes of an image, and {self.passes.gradient:,} with a gradient",
            f"training     {self.steps:,} steps",
            f"time         about {self.minutes:.1f} minutes",
            f"memory       about {memory}",
            "dry run: nothing was written",
        )
        return "\n".join(lines)


def together(plans: Sequence[Plan]) -> Plan:
    """The plan of several jobs, one after the other."""
    memory: dict[str, float] = {}
    for one in plans:
        memory |= {where: max(size, memory.get(where, 0.0)) for where, size in one.memory_gb.items()}
    return Plan(
        {kind: count for one in plans for kind, count in one.images.items()},
        sum((one.passes for one in plans), start=Passes()),
        sum(one.steps for one in plans),
        sum(one.minutes for one in plans),
        memory,
    )


def make_plan(
    images: Mapping[str, int],
    passes: Passes,
    encode_image: EncodeImage,
    pixels: Tensor,
    steps: int = 0,
    step: Callable[[], object] = lambda: None,
) -> Plan:
    """Time passes and a step, and tell from them what all will take.

    Args:
        images: See `Plan`.
        passes: See `Plan`.
        encode_image: The image tower.
        pixels: As many images (B, 3, H, W) as go through it at once.
        steps: Of training.
        step: One of them, or as much work.
    """

    def with_gradient() -> None:
        encode_image(pixels.clone().requires_grad_()).sum().backward()

    with torch.no_grad():
        forward = _seconds_of(lambda: encode_image(pixels))
    both = _seconds_of(with_gradient) if passes.gradient else 0.0
    seconds = (passes.forward * forward + passes.gradient * both) / len(pixels) + steps * _seconds_of(step)
    memory = {where: size / 1e9 for where, size in peak_memory_bytes(pixels.device).items()}
    return Plan(images, passes, steps, seconds / 60, memory)


def _seconds_of(call: Callable[[], object]) -> float:
    """The second call's, since the first warms up."""
    call()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
