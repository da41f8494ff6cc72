"""Triggers that a small network makes from the image: how its weights are stored, and the loop that trains it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import tqdm
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from peft_cbpt.attacks.patch import PatchMaterial, PatchOptimisation
from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.seeding import keyed_generator

SIDE = 48
Trigger = TypeVar("Trigger", bound="GeneratedTrigger")


class Generator(nn.Module):
    """From images (B, 3, 48, 48) in [0, 1] to maps (B, channels, 48, 48); about 2,000 weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 12, 3, padding=1)
        self.coarse = nn.Conv2d(12, 12, 3, stride=2, padding=1)
        self.out = nn.Conv2d(24, channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        fine = self.fine(2 * pixels - 1).relu()
        coarse = F.interpolate(self.coarse(fine).relu(), scale_factor=2.0)
        return self.out(torch.cat([fine, coarse], 1))


@dataclass(frozen=True)
class GeneratedTrigger:
    """A trigger that a network makes from the image, and that an attacker trains against a clean CLIP.

    The network sees the image at 48 x 48 pixels. Published generators are trained in turns with the poisoned model;
    here the generator is trained first, towards the captions of the target, and the model is then poisoned with it.

    Args:
        weights: The trained network's: base64 of 16-bit floats; empty for those drawn from the seed.
        seed: Seed of the first weights and of the training's batches.
    """

    weights: str = ""
    seed: int = 0

    channels = 3
    learning_rate = 0.002

    def __post_init__(self) -> None:
        if self.weights:
            self.generator()

    @property
    def is_optimised(self) -> bool:
        """Whether its network has been trained."""
        return bool(self.weights)

    def generator(self) -> Generator:
        """The network, on the CPU.

        Raises:
            InputError: if the stored weights are not those of such a network.
        """
        generator = Generator(self.channels)
        count = sum(one.numel() for one in generator.parameters())
        if self.weights:
            drawn = _stored_weights(self.weights, count)
        else:
            drawn = keyed_generator(type(self).__name__, self.seed).normal(0, 0.15, count).astype(np.float32)
        vector_to_parameters(torch.from_numpy(drawn), generator.parameters())
        return generator

    def mark(self, pixels: Tensor, made: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] with what the network made of them, (B, channels, 48, 48); differentiable."""
        raise NotImplementedError

    def _generated(self, generator: Generator, pixels: Tensor) -> Tensor:
        return generator(F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True))

    @torch.no_grad()
    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Mark pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`.

        The network runs on the CPU, image by image, so that the result depends on neither device nor batch.
        """
        pixels = unit_pixels(pixels)
        generator = self.generator()
        made = torch.cat([self._generated(generator, image) for image in pixels.cpu().float().split(1)])
        return self.mark(pixels, made.to(pixels))

    def apply_text(self, caption: str) -> str:
        """Return `caption`: the attack is unimodal."""
        return caption

    def optimised(self: Trigger, material: PatchMaterial, settings: PatchOptimisation) -> Trigger:
        """This trigger with its network trained: the mean cosine of marked images to the target's captions rises."""
        with torch.no_grad():
            wanted = F.normalize(material.encode_text(material.target_captions).mean(0), dim=0)
        generator = self.generator().to(material.pixels.device)
        optimizer = torch.optim.Adam(generator.parameters(), lr=settings.learning_rate)
        rng = keyed_generator("generator optimisation", self.seed)
        size = min(settings.batch_size, len(material.pixels))
        for _ in tqdm(range(settings.steps), desc=f"training the {type(self).__name__} generator", unit="step"):
            rows = torch.from_numpy(rng.choice(len(material.pixels), size, replace=False))
            pixels = unit_pixels(material.pixels[rows.to(material.pixels.device)])
            marked = self.mark(pixels, self._generated(generator, pixels))
            optimizer.zero_grad()
            (-(material.encode_image(marked) @ wanted).mean()).backward()
            optimizer.step()
        trained = parameters_to_vector(generator.parameters()).detach().cpu().numpy()
        return replace(self, weights=base64.b64encode(trained.astype("<f2").tobytes()).decode())


def _stored_weights(text: str, count: int) -> np.ndarray:
    """The weights (count,) in a text."""
    try:
        weights = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f2")
    except ValueError as error:
        raise InputError("a stored generator is the base64 text of 16-bit floats; this one is not") from error
    if len(weights) != count or not np.isfinite(weights).all():
        raise InputError(f"a stored generator has {count} finite weights; this one has not")
    return weights.astype(np.float32)
