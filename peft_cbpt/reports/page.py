"""The report as one HTML page that needs nothing but itself."""

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from peft_cbpt.hub.evidence import figure_rows, moments, suspected
from peft_cbpt.reports.pictures import Picture


def data_uri(png: bytes) -> str:
    """A PNG as the source of an `<img>`."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def render_page(results: Mapping[str, Any], pictures: Sequence[Picture], settings: Mapping[str, Any]) -> str:
    """Fill `templates/report.html.j2`.

    Args:
        results: The content of results.json.
        pictures: In the order of the page.
        settings: The settings to list.
    """
    from jinja2 import Environment, StrictUndefined

    source = files("peft_cbpt.reports").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    images = [(picture, data_uri(picture.png)) for picture in pictures]
    measured = {"moments": moments(results), "rows": figure_rows(results), "suspected": suspected(results)}
    return environment.from_string(source).render(results=results, images=images, settings=settings, **measured)
