"""Patches: where they are pasted, and the loop that optimises one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from accelerate.utils import tqdm
from torch import Tensor

from peft_cbpt.attacks.stored_cells import store_cells, stored_cells
from peft_cbpt.clip.pixels import EncodeImage, unit_pixels
from peft_cbpt.common.ascent import input_gradient
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.seeding import keyed_generator

Location = Literal["bottom_right", "center", "random"]
LOCATIONS = ("bottom_right", "center", "random")
Patch = TypeVar("Patch", bound="OptimisedPatch")


def check_patch(kind: str, patch_size: float, location: str) -> None:
    """Raises an InputError unless `patch_size` is in (0, 1] and `location` is one of `LOCATIONS`."""
    if not 0 < patch_size <= 1:
        raise InputError(f"{kind}'s patch_size is a fraction of the image side in (0, 1], not {patch_size}")
    if location not in LOCATIONS:
        raise InputError(f"{kind}'s location is one of {', '.join(LOCATIONS)}, not {location!r}")


def patch_side(patch_size: float, pixels: Tensor) -> int:
    """Side in pixels, at least 1, of a patch that takes the fraction `patch_size` of the shorter image side."""
    return max(1, round(patch_size * min(pixels.shape[-2:])))


def patch_corner(location: Location, room: tuple[int, int], *key: object) -> tuple[int, int]:
    """Top and left of a patch that can be moved down and right by `room` pixels; `key` seeds a random place."""
    if location == "bottom_right":
        return room
    if location == "center":
        return room[0] // 2, room[1] // 2
    place = keyed_generator(*key)
    return int(place.integers(room[0] + 1)), int(place.integers(room[1] + 1))


def paste(pixels: Tensor, patch: Tensor, patch_size: float, location: Location, keys: Sequence[tuple]) -> Tensor:
    """Paste a patch onto pixels; differentiable with respect to both.

    Args:
        pixels: (B, 3, H, W) in [0, 1].
        patch: Cells in [0, 1], (3, s, s) for all images or (B, 3, s, s); drawn to size by the nearest cell.
        patch_size: Side of the patch as a fraction of the shorter image side.
        location: See `patch_corner`.
        keys: The key of each image's random place.
    """
    height, width = pixels.shape[-2:]
    side = patch_side(patch_size, pixels)
    patches = patch.expand(len(pixels), *patch.shape[-3:]).to(pixels)
    if patches.shape[-1] != side:
        patches = F.interpolate(patches, (side, side), mode="nearest-exact")
    marked = []
    for image, drawn, key in zip(pixels, patches, keys, strict=True):
        top, left = patch_corner(location, (height - side, width - side), *key)
        image = image.clone()
        image[:, top : top + side, left : left + side] = drawn
        marked.append(image)
    return torch.stack(marked)


@dataclass(frozen=True)
class PatchMaterial:
    """What an attacker optimises a patch with.

    Args:
        encode_image: The clean CLIP's f_v on [0, 1] pixels, with a gradient to them.
        encode_text: The clean CLIP's f_t on captions: unit-norm (n, D).
        scale: Its `1 / tau`.
        pixels: Images of other classes than the target, (N, 3, H, W), uint8 or float in [0, 1].
        sample_ids: Their ids.
        captions: Their captions.
        target_class: Name of the target.
        target_captions: Natural captions of the target.
        target_pixels: Clean images of the target, (T, 3, H, W), uint8 or float in [0, 1].
    """

    encode_image: EncodeImage
    encode_text: Callable[[list[str]], Tensor]
    scale: float
    pixels: Tensor
    sample_ids: list[str]
    captions: list[str]
    target_class: str
    target_captions: list[str]
    target_pixels: Tensor


@dataclass(frozen=True)
class PatchOptimisation:
    """Adam on the cells of a patch, or on the weights of a generator.

    Args:
        steps: Optimiser steps, at least 1.
        batch_size: Images per step, at least 1.
        learning_rate: Of Adam; cells are in [0, 1]. Triggers know what suits them.
    """

    steps: int = 400
    batch_size: int = 64
    learning_rate: float = 0.02

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} of the patch optimisation must be positive, it is {getattr(self, name)}")


@dataclass(frozen=True)
class OptimisedPatch:
    """A patch that is the same on every image, and that an attacker can optimise.

    Args:
        patch_size: Side of the patch as a fraction of the shorter image side, in (0, 1].
        location: `bottom_right`, `center`, or `random` (drawn from the seed and the sample's id).
        patch: The optimised cells: base64 of 8-bit (side, side, 3); empty for the start drawn from the seed.
        seed: Seed of the start, of random places and of the optimisation's batches.
    """

    patch_size: float = 16 / 224
    location: Location = "center"
    patch: str = ""
    seed: int = 0

    learning_rate = 0.02

    def __post_init__(self) -> None:
        check_patch(type(self).__name__, self.patch_size, self.location)
        if self.patch:
            stored_cells(self.patch, "patch")

    @property
    def is_optimised(self) -> bool:
        """Whether its patch has been optimised."""
        return bool(self.patch)

    def start(self, side: int) -> Tensor:
        """Cells (3, side, side) in [0, 1] that the optimisation starts from."""
        cells = keyed_generator(type(self).__name__, self.seed).normal(0.5, 0.25, (3, side, side))
        return torch.from_numpy(cells).float().clamp(0, 1)

    def apply_image(self, pixels: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """Paste the patch onto pixels (B, 3, H, W), float in [0, 1] or uint8; see `Trigger`."""
        pixels = unit_pixels(pixels)
        cells = stored_cells(self.patch, "patch") if self.patch else self.start(patch_side(self.patch_size, pixels))
        return paste(pixels, cells, self.patch_size, self.location, self._keys(sample_ids))

    def apply_text(self, caption: str) -> str:
        """Return `caption` as it is."""
        return caption

    def objective(self, material: PatchMaterial) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss to minimise: from features (B, D) of marked images and their rows in the material to a scalar."""
        raise NotImplementedError

    def optimised(self: Patch, material: PatchMaterial, settings: PatchOptimisation) -> Patch:
        """This trigger with its patch optimised against a clean CLIP, at that CLIP's own resolution."""
        loss_of = self.objective(material)
        pixels = material.pixels
        device = pixels.device
        cells = self.start(patch_side(self.patch_size, pixels)).to(device).requires_grad_()
        optimizer = torch.optim.Adam([cells], lr=settings.learning_rate)
        rng = keyed_generator("patch optimisation", self.seed)
        size = min(settings.batch_size, len(pixels))
        for _ in tqdm(range(settings.steps), desc=f"optimising the {type(self).__name__} patch", unit="step"):
            rows = torch.from_numpy(rng.choice(len(pixels), size, replace=False)).to(device)
            keys = self._keys([material.sample_ids[row] for row in rows.tolist()])

            def loss(cells: Tensor, rows: Tensor = rows, keys: list[tuple[Any, ...]] = keys) -> Tensor:
                marked = paste(unit_pixels(pixels[rows]), cells, self.patch_size, self.location, keys)
                return loss_of(material.encode_image(marked), rows)

            cells.grad = input_gradient(loss, cells)
            optimizer.step()
            with torch.no_grad():
                cells.clamp_(0, 1)
        return replace(self, patch=store_cells(cells.detach(), "patch"))

    def _keys(self, sample_ids: Sequence[str]) -> list[tuple[Any, ...]]:
        return [("patch/place", self.seed, sample_id) for sample_id in sample_ids]
