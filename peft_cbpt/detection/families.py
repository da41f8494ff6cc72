"""The kinds of universal triggers: one mark shared by all images, of a given size.

A kind says how a mark is drawn, what it does to pixels and what keeps it within its size. Sizes are root mean square
changes of a pixel's channel in [0, 1]-pixel units, so that those of different kinds and resolutions compare: BadNet's
patch of an eighth of the side has 0.05, Blended 0.06 to 0.09, SIG's wave 0.166.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PATCH_RMS = 0.4
"""Of random cells pasted over natural pixels, within the patch."""
_SPREAD = (0.7548776662466927, 0.5698402909980532)
"""Multiples of these, modulo 1, spread evenly over the unit square (the R2 sequence)."""


class Kind(Protocol):
    """A kind of universal trigger; a frozen dataclass."""

    searched: ClassVar[bool]
    """Whether gradient ascent makes marks better; else the best of a few drawn ones is taken."""

    @property
    def size(self) -> float:
        """The largest root mean square change, in [0, 1]-pixel units."""

    def draw(self, side: tuple[int, int], generator: np.random.Generator) -> Tensor:
        """A random mark, float32 of any shape, for images of (H, W) pixels."""

    def apply(self, pixels: Tensor, mark: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] with the mark on all; differentiable with respect to both."""

    def at_full_size(self, mark: Tensor, pixels: Tensor) -> Tensor:
        """The mark grown or shrunk to `size` on such pixels; a zero mark is returned as it is."""

    def stepped(self, mark: Tensor, gradient: Tensor, pixels: Tensor, part: float) -> Tensor:
        """The mark after a step up a gradient, `part` of a search's first step long, and within `size`."""


FIRST_STEP = 1 / 6
"""Length of the first step of ascent as a part of the mark's length at full size; steps shrink linearly to none."""
FIRST_STEP_OF_CELLS = 0.3
"""The same of every cell of a patch. Steps by the sign: a normalised gradient moves few of them."""


class _Scaled:
    """What marks have in common whose change of pixels grows with their length."""

    searched: ClassVar[bool] = True
    size: float

    def rms(self, mark: Tensor, pixels: Tensor) -> Tensor:
        """The change that the mark makes, before pixels are cut off at 0 and 1."""
        return (self.changed(pixels, mark) - pixels).square().mean().sqrt()

    def changed(self, pixels: Tensor, mark: Tensor) -> Tensor:
        """`apply` without the cut at 0 and 1."""
        raise NotImplementedError

    def apply(self, pixels: Tensor, mark: Tensor) -> Tensor:
        return self.changed(pixels, mark).clamp(0, 1)

    def at_full_size(self, mark: Tensor, pixels: Tensor) -> Tensor:
        return mark * (self.size / self.rms(mark, pixels).clamp(min=torch.finfo(mark.dtype).tiny))

    def stepped(self, mark: Tensor, gradient: Tensor, pixels: Tensor, part: float) -> Tensor:
        tiny = torch.finfo(mark.dtype).tiny
        length = self.at_full_size(mark, pixels).norm() * FIRST_STEP * part
        mark = mark + length * gradient / gradient.norm().clamp(min=tiny)
        return mark * (self.size / self.rms(mark, pixels).clamp(min=tiny)).clamp(max=1)


@dataclass(frozen=True)
class ImageWide(_Scaled):
    """Any perturbation of all pixels: the mark is what is added, (3, H, W)."""

    size: float

    def draw(self, side: tuple[int, int], generator: np.random.Generator) -> Tensor:
        return _normal(generator, 3, *side)

    def rms(self, mark: Tensor, pixels: Tensor) -> Tensor:
        return mark.square().mean().sqrt()

    def changed(self, pixels: Tensor, mark: Tensor) -> Tensor:
        return pixels + mark


@dataclass(frozen=True)
class Pattern(_Scaled):
    """A coarse perturbation of all pixels: the mark is cosine coefficients (1 or 3, 2 * waves, 2 * waves).

    Gradient ascent over all pixels ends in fine noise before it comes to a trigger that is strong but coarse.

    Args:
        size: See `Kind`.
        waves: At most so many across the image, in either direction.
        grey: The same in all channels.
    """

    size: float
    waves: int = 8
    grey: bool = True

    def draw(self, side: tuple[int, int], generator: np.random.Generator) -> Tensor:
        rows, columns = (min(2 * self.waves, length) for length in side)
        return _normal(generator, 1 if self.grey else 3, rows, columns)

    def rms(self, mark: Tensor, pixels: Tensor) -> Tensor:
        return mark.square().sum().div(len(mark) * pixels.shape[-2] * pixels.shape[-1]).sqrt()

    def changed(self, pixels: Tensor, mark: Tensor) -> Tensor:
        rows, columns = pixels.shape[-2:]
        return pixels + _cosines(mark.shape[1], rows).to(mark).T @ mark @ _cosines(mark.shape[2], columns).to(mark)


@dataclass(frozen=True)
class Wave(_Scaled):
    """One grey sine wave over the image, as SIG's: the mark is (waves down, waves across, phase / 2 pi, amplitude).

    Args:
        size: See `Kind`.
        most: So many waves across the image at most, in either direction.
    """

    searched = False
    size: float
    most: int = 12

    def draw(self, side: tuple[int, int], generator: np.random.Generator) -> Tensor:
        most = min(self.most, min(side) // 4)
        down, across = int(generator.integers(0, most + 1)), int(generator.integers(-most, most + 1))
        down = 1 if down == across == 0 else down
        return torch.tensor([down, across, generator.random(), 1.0])

    def every(self, side: tuple[int, int]) -> list[Tensor]:
        """All waves of so many pixels, each as a sine and as a cosine: no gradient leads from one to another."""
        most = min(self.most, min(side) // 4)
        numbers = [(down, across) for down in range(most + 1) for across in range(-most, most + 1)]
        once = [one for one in numbers if one > (0, 0)]  # the opposite direction is the same wave
        return [torch.tensor([down, across, phase, 1.0]) for down, across in once for phase in (0.0, 0.25)]

    def rms(self, mark: Tensor, pixels: Tensor) -> Tensor:
        return mark[3].abs() / math.sqrt(2)

    def at_full_size(self, mark: Tensor, pixels: Tensor) -> Tensor:
        return torch.cat([mark[:3], mark.new_tensor([self.size * math.sqrt(2)])])

    def changed(self, pixels: Tensor, mark: Tensor) -> Tensor:
        down, across, phase, amplitude = mark.unbind()
        rows, columns = (torch.arange(n).to(pixels) / n for n in pixels.shape[-2:])
        return pixels + amplitude * torch.sin(2 * math.pi * (down * rows[:, None] + across * columns + phase))


@dataclass(frozen=True)
class Warp(_Scaled):
    """A smooth warp, as WaNet's: the mark is where a coarse grid of points looks instead, (2, cells, cells).

    Args:
        size: See `Kind`.
        cells: Points of the grid in either direction; between them the field is bicubic.
    """

    size: float
    cells: int = 4

    def draw(self, side: tuple[int, int], generator: np.random.Generator) -> Tensor:
        return 0.05 * _normal(generator, 2, self.cells, self.cells)

    def changed(self, pixels: Tensor, mark: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        flow = F.interpolate(mark[None], (height, width), mode="bicubic", align_corners=True)
        rows, columns = (torch.linspace(-1, 1, n).to(pixels) for n in (height, width))
        still = torch.stack([columns.expand(height, -1), rows[:, None].expand(-1, width)], dim=-1)
        grid = (still + flow[0].permute(1, 2, 0)).expand(len(pixels), -1, -1, -1)
        return F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=True)


@dataclass(frozen=True)
class Colour(_Scaled):
    """An affine change of colours, as a filter's: the mark (3, 4) is a matrix and a shift, added to the identity."""

    size: float

    def draw(self, side: tuple[int, int], generator: np.random.Generator) -> Tensor:
        return _normal(generator, 3, 4)

    def changed(self, pixels: Tensor, mark: Tensor) -> Tensor:
        mixed = torch.einsum("oc,bchw->bohw", mark[:, :3], pixels)
        return pixels + mixed + mark[:, 3, None, None]


@dataclass(frozen=True)
class Patch:
    """A square pasted over a part of the image: the mark is its cells less 0.5, (3, s, s).

    Args:
        size: See `Kind`; the side, as a part of the image's shorter one, is `size / PATCH_RMS`.
        place: Top and left as parts, in [0, 1], of the room that there is; None is another place on every image of a
            batch.
    """

    searched: ClassVar[bool] = True
    size: float
    place: tuple[float, float] | None = (1.0, 1.0)

    def draw(self, side: tuple[int, int], generator: np.random.Generator) -> Tensor:
        cells = max(1, round(self.size / PATCH_RMS * min(side)))
        return torch.from_numpy(generator.random((3, cells, cells)) - 0.5).float()

    def apply(self, pixels: Tensor, mark: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        cells = mark.shape[-1]
        if self.place is None:
            numbers = torch.arange(1, len(pixels) + 1, dtype=torch.float64)
            parts = [(numbers * step).remainder(1).tolist() for step in _SPREAD]
            places = list(zip(*parts, strict=True))
        else:
            places = [self.place] * len(pixels)
        patch, mask = F.pad(mark + 0.5, (0, width - cells, 0, height - cells)), mark.new_zeros(1, height, width)
        mask[:, :cells, :cells] = 1
        corners = [(round(top * (height - cells)), round(left * (width - cells))) for top, left in places]
        if self.place is not None:
            return torch.where(torch.roll(mask, corners[0], (1, 2)) > 0, torch.roll(patch, corners[0], (1, 2)), pixels)
        patches = torch.stack([torch.roll(patch, corner, (1, 2)) for corner in corners])
        masks = torch.stack([torch.roll(mask, corner, (1, 2)) for corner in corners])
        return torch.where(masks > 0, patches, pixels)

    def at_full_size(self, mark: Tensor, pixels: Tensor) -> Tensor:
        return mark

    def stepped(self, mark: Tensor, gradient: Tensor, pixels: Tensor, part: float) -> Tensor:
        return (mark + FIRST_STEP_OF_CELLS * part * gradient.sign()).clamp(-0.5, 0.5)


def _normal(generator: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(generator.standard_normal(shape)).float()


def _cosines(count: int, size: int) -> Tensor:
    """The first `count` cosines of the orthonormal discrete cosine transform, (count, size)."""
    places = (torch.arange(size) + 0.5) * math.pi / size
    cosines = torch.cos(torch.arange(count)[:, None] * places)
    return cosines / cosines.norm(dim=1, keepdim=True)


KINDS: dict[str, type] = {kind.__name__: kind for kind in (ImageWide, Patch, Wave, Pattern, Warp, Colour)}


def describe_kind(kind: Kind) -> dict[str, Any]:
    """Name and settings of a kind, JSON-serialisable."""
    return {"kind": type(kind).__name__, **asdict(kind)}  # type: ignore[call-overload]


def kind_from(described: dict[str, Any]) -> Kind:
    """What `describe_kind` described."""
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in described.items()}
    kind: Kind = KINDS[str(settings.pop("kind"))](**settings)
    return kind
