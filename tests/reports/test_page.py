"""The page: whole in itself, and what it says is what was measured, however odd the names are."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from peft_cbpt.reports.bars import summary_figure
from tests.reports.chromium import console_of, needs_chromium

pytest.importorskip("captum")
pytest.importorskip("jinja2")

from peft_cbpt.reports.page import render_page
from peft_cbpt.reports.pictures import Picture
from peft_cbpt.reports.report import shown_settings

NASTY = '<script>alert("x")</script> & <img src=https://example.org/x.png>'


class Page(HTMLParser):
    """The tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"<{tag}> is closed out of turn"

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data


def check_page(html: str) -> Page:
    """Parse a page and see that it is well formed and loads nothing."""
    page = Page(html)
    assert not page.open, f"{page.open} are never closed"
    assert "script" not in {tag for tag, _ in page.tags}
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert sources and all(source.startswith("data:") for source in sources)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert images and all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in images)
    assert not re.search(r"url\(|@import", html)
    return page


def page_of(name: str, attacked: bool = True, **more: Any) -> str:
    result = {"attack_success_rate": 0.9876, "attack_success_rate_published": 0.9, "robust_accuracy": 0.0123}
    moments = [{"clean_accuracy": share, "attacks": {name: result} if attacked else {}} for share in (0.6543, 0.6321)]
    results = {
        "model": name,
        "class_names": [name, "dog"],
        "attacks": {name: {"target_class": name}} if attacked else {},
        "shots": ["a", "b", "c"],
        "n_test_images": 4321,
        "date": "2026-01-01",
        "before": moments[0],
        "after": moments[1],
        "base_fingerprint": {"after": "f00"},
        "versions": {"torch": "9.9"},
    }
    picture = Picture("summary", "Before and after", name, summary_figure(*moments))
    return render_page(results | more, [picture], {"num_shots": 16})


def test_the_page_is_whole_and_says_what_was_measured():
    page = check_page(page_of("badnet"))
    for figure in ("65.43", "63.21", "98.76", "1.23", "4321", "f00", "9.9", "no proof"):
        assert figure in page.text, figure


def test_the_page_says_what_was_found_and_what_the_encoder_alone_does():
    found = {"class": "dog", "kind": "patch", "score": 0.54, "false_alarm_rate": 1e-8}
    encoder = {"clean_accuracy": 0.6444, "attacks": {}}
    more = {"suspects": {"suspects": [found]}, "settings": {"only": None}, "encoder": encoder}
    page = check_page(page_of("clip", attacked=False, **more))
    for words in ("dog (by patch, score 0.54", "encoder alone", "64.44"):
        assert words in page.text, words


def test_settings_of_the_encoder_are_those_of_the_method():
    encoder = {"lora_rank": 8, "seed": 3, "hub_token": "x", "ddp_timeout": 1800}
    shown = shown_settings({"num_shots": 4, "hub_token": "x", "encoder": encoder})
    assert shown == {"num_shots": 4, "encoder: lora_rank": 8, "encoder: seed": 3}
    assert shown_settings({"num_shots": 4, "encoder": None}) == {"num_shots": 4}


def test_names_are_text_and_never_markup():
    page = check_page(page_of(NASTY))
    assert page.text.count(NASTY) >= 3


def test_without_attacks_the_page_does_not_speak_of_backdoors():
    assert "says nothing about backdoors" in check_page(page_of("clip", attacked=False)).text


@needs_chromium
def test_chromium_shows_the_page_without_complaint(tmp_path):
    """And complains about one that asks for anything: the page forbids itself the network."""
    page = tmp_path / "page.html"
    page.write_text(page_of(NASTY))
    assert console_of(page, tmp_path) == []
    page.write_text(page.read_text().replace("</body>", '<img src="https://example.org/x.png"></body>'))
    assert any("Content Security Policy" in line for line in console_of(page, tmp_path))
