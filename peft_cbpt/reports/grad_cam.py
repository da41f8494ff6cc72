"""Grad-CAM of a CLIP's image tower (Fig. 4): where the model looks for the class it names."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.reports.style import AFTER, BEFORE, new_figure, short


@dataclass(frozen=True)
class GridReshape:
    """Between a layer's output and a map (B, C, h, w), and back."""

    to_grid: Callable[[Tensor], Tensor]
    from_grid: Callable[[Tensor, Tensor], Tensor]
    """From the map and the layer's own output to an output with the map in it."""


def _tokens_to_grid(tokens: Tensor) -> Tensor:
    side = math.isqrt(tokens.shape[1])
    return tokens[:, -(side**2) :].transpose(1, 2).unflatten(2, (side, side))


def _grid_to_tokens(grid: Tensor, tokens: Tensor) -> Tensor:
    first = tokens.shape[1] - grid[0, 0].numel()  # a class token, or none
    return torch.cat([tokens[:, :first], grid.flatten(2).transpose(1, 2)], dim=1)


TOKENS = GridReshape(_tokens_to_grid, _grid_to_tokens)
MAP = GridReshape(lambda output: output, lambda grid, _: grid)


def target_layer(vision_model: Any) -> tuple[nn.Module, GridReshape]:
    """The last layer of an image tower that still has a place for every part of the image.

    A ViT is read at the first norm of its last block: after that block only the class token reaches the feature. A
    ResNet is read at its last stage.

    Raises:
        ValueError: for a tower of another kind.
    """
    if hasattr(vision_model, "layer4"):
        return vision_model.layer4, MAP
    if hasattr(vision_model, "encoder"):
        return vision_model.encoder.layers[-1].layer_norm1, TOKENS
    raise ValueError(f"{type(vision_model).__name__} is neither a ViT nor a ResNet: Grad-CAM knows no layer of it")


def grad_cam(
    encode_image: EncodeImage, vision_model: nn.Module, pixels: Tensor, text_features: Tensor, classes: Tensor
) -> Tensor:
    """Heat maps (B, H, W) in [0, 1] of what speaks for a class.

    Args:
        encode_image: The image encoder, built on `vision_model`.
        vision_model: The image tower.
        pixels: Images (B, 3, H, W) in [0, 1].
        text_features: Class features (n, D).
        classes: The class to explain on each image, int64 (B,).
    """
    from captum.attr import LayerGradCam

    layer, reshape = target_layer(vision_model)
    grid = nn.Identity()

    def through_grid(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return reshape.from_grid(grid(reshape.to_grid(output)), output)

    handle = layer.register_forward_hook(through_grid)
    try:
        explain = LayerGradCam(lambda images: encode_image(images) @ text_features.T, grid)
        maps = explain.attribute(pixels, target=classes, relu_attributions=True).detach()
    finally:
        handle.remove()
    maps = F.interpolate(maps.float(), pixels.shape[-2:], mode="bilinear")[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


@dataclass(frozen=True)
class Explained:
    """An image with the class a model names and the heat map for it: pixels (3, H, W), map (H, W)."""

    pixels: Tensor
    before: str
    map_before: Tensor
    after: str
    map_after: Tensor


def grad_cam_figure(rows: Sequence[tuple[str, Explained, Explained]]) -> Figure:
    """One row an image: clean, clean before and after, triggered, triggered before and after.

    Args:
        rows: The true class, the clean and the triggered image.
    """
    figure = new_figure(11.5, 0.6 + 2.15 * len(rows))
    grid = figure.subplots(len(rows), 6, squeeze=False)
    for axes_row, (name, clean, triggered) in zip(grid, rows, strict=True):
        for first, title, shown in ((0, "clean", clean), (3, "triggered", triggered)):
            image = shown.pixels.permute(1, 2, 0).numpy()
            panels = (
                (f"{title}", "black", None),
                (f"before: {short(shown.before, 17)}", BEFORE, shown.map_before),
                (f"after: {short(shown.after, 17)}", AFTER, shown.map_after),
            )
            for axes, (label, colour, heat) in zip(axes_row[first : first + 3], panels, strict=True):
                axes.imshow(image, interpolation="nearest")
                if heat is not None:
                    axes.imshow(heat.numpy(), cmap="inferno", alpha=0.6, vmin=0, vmax=1)
                axes.set_title(label, fontsize=8.5, color=colour)
                axes.set_xticks([])
                axes.set_yticks([])
        axes_row[0].set_ylabel(short(name, 20), fontsize=9)
    return figure
