"""What all pictures share: colours that colour-blind people can tell apart, short names, and how a file is written."""

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BEFORE, AFTER = "#b0413e", "#2f6f8f"
TRIGGERED, TARGET, CLEAN, ACCENT = "#d55e00", "#009e73", "#8c8c8c", "#cc79a7"
DPI = 110


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches that keeps labels from overlapping and needs no display."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def short(name: str, length: int = 22) -> str:
    """`name`, cut in the middle where it is longer than `length` characters, so that both ends can be read."""
    if len(name) <= length:
        return name
    head = (length - 1) * 2 // 3
    return f"{name[:head].rstrip()}…{name[len(name) - (length - 1 - head) :].lstrip()}"


def plain_spines(axes: Axes) -> None:
    """Take the frame off above and at the right."""
    axes.spines[["top", "right"]].set_visible(False)
