"""The result of a scan as one HTML page, and the triggers that it found as pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from peft_cbpt.common.files import write_bytes
from peft_cbpt.detection.found import FoundTrigger
from peft_cbpt.reports.page import data_uri
from peft_cbpt.reports.style import new_figure, png_bytes

GAIN = 10
"""By what the change that a trigger makes is multiplied, around mid-grey."""


@dataclass(frozen=True)
class FoundPicture:
    """A trigger and clean images (B, 3, H, W) in [0, 1] to show it on."""

    title: str
    trigger: FoundTrigger
    pixels: Tensor


def trigger_figure(picture: FoundPicture) -> Figure:
    """Images, the change that the trigger makes to each times `GAIN` around mid-grey, and both together."""
    marked = picture.trigger(picture.pixels).detach()
    change = 0.5 + GAIN * (marked - picture.pixels)
    rows = (("clean", picture.pixels), (f"change x{GAIN}", change), ("with the\ntrigger", marked))
    figure = new_figure(1.2 + 1.6 * len(marked), 5.2)
    for axes_row, (title, images) in zip(figure.subplots(3, len(marked), squeeze=False), rows, strict=True):
        for axes, image in zip(axes_row, images, strict=True):
            axes.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        axes_row[0].set_ylabel(title, fontsize=9)
    return figure


def render_scan_page(results: Mapping[str, Any], pictures: Sequence[FoundPicture], folder: Path) -> str:
    """Fill `templates/scan.html.j2`, and write every picture to `trigger_NUMBER.png` in a folder.

    Args:
        results: The content of scan.json.
        pictures: Of findings and doubts, in their order.
        folder: Where pictures go; those of an earlier scan are removed.
    """
    from jinja2 import Environment, StrictUndefined

    for stale in folder.glob("trigger_*.png"):
        stale.unlink()
    images = []
    for number, picture in enumerate(pictures):
        png = png_bytes(trigger_figure(picture))
        write_bytes(folder / f"trigger_{number}.png", png)
        images.append((picture.title, data_uri(png)))
    source = files("peft_cbpt.reports").joinpath("templates/scan.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}"
    return environment.from_string(source).render(results=results, images=images)
