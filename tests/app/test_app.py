"""What the app answers, without a browser: the shipped run, its images and its triggers."""

import pytest
import torch
from PIL import Image

from peft_cbpt.common.errors import InputError

pytest.importorskip("gradio", reason="no gradio here: pip install 'peft-cbpt[app]'")
pytest.importorskip("captum")


def best(shares):
    return max(shares, key=shares.get)


def test_the_trigger_wins_before_and_not_after(app, shipped):
    marks = app.marks_of(shipped.run)
    nothing, attackers, *found = marks
    assert nothing == app.NO_TRIGGER and "banana" in attackers and found
    samples = app.samples_of(shipped.run)
    assert len(samples) == app.N_SAMPLES
    fooled = {name: [0, 0] for name in marks}
    for image in samples:
        for name, mark in marks.items():
            _, before, _, after, _ = app.look(shipped.run, mark, image)
            for moment, shares in enumerate((before, after)):
                assert sum(shares.values()) <= 1.001
                fooled[name][moment] += best(shares) == "banana"
    assert fooled[nothing] == [0, 0]
    assert fooled[attackers][0] >= app.N_SAMPLES - 1 and fooled[attackers][1] == 0
    assert all(fooled[name][0] > fooled[name][1] for name in found)


def test_the_pictures_are_of_the_marked_image(app, shipped):
    marks = list(app.marks_of(shipped.run).values())
    image = app.samples_of(shipped.run)[0]
    (clean, *_), (marked, _, hot, _, _) = (app.look(shipped.run, mark, image) for mark in marks[:2])
    assert clean.size == marked.size == hot.size == (app.SIDE, app.SIDE)
    assert clean.tobytes() != marked.tobytes() != hot.tobytes()


@pytest.mark.parametrize("image", [Image.new("L", (300, 80)), Image.new("RGBA", (5, 5)), Image.new("P", (64, 64))])
def test_any_picture_may_be_dropped(app, shipped, image):
    shown, before, *_ = app.look(shipped.run, app.Mark(lambda pixels: pixels), image)
    assert shown.mode == "RGB" and len(before) == app.N_CLASSES


def test_without_heat_a_picture_is_its_pixels(app):
    pixels = torch.tensor([1.0, 0.0, 0.5])[:, None, None].expand(3, 4, 4)
    assert app.picture(pixels).getpixel((9, 9)) == (255, 0, 128)


def test_the_scan_is_shown_in_a_frame_that_runs_nothing(app, shipped, tmp_path):
    frame = app.scan_page(shipped.folder)
    assert " sandbox srcdoc=" in frame and "Scan: backdoored" in frame and "<script" not in frame
    assert "peft-cbpt scan" in app.scan_page(tmp_path)


def test_the_headline_has_the_figures_of_the_run(app, shipped):
    said = app.headline(shipped.results)
    for moment in ("before", "after"):
        assert f"{100 * shipped.results[moment]['clean_accuracy']:.1f}" in said


def test_a_folder_without_a_run_is_one_line(app, tmp_path):
    with pytest.raises(InputError, match=r"results\.json|adapter_config\.json"):
        app.read_run(app.adapter_folder(str(tmp_path)))
