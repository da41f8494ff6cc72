"""The pictures' contents; that no text of theirs overlaps or is cut, for few and many triggers, classes and epochs."""

import pytest
import torch
from matplotlib.text import Text

from peft_cbpt.reports.bars import attacks_figure, summary_figure
from peft_cbpt.reports.curves import curves_figure
from peft_cbpt.reports.embedding_map import Embeddings, embedding_map, embedding_map_figure
from peft_cbpt.reports.per_class import class_accuracy, most_changed, per_class_figure
from peft_cbpt.reports.perturbations import perturbations_figure
from peft_cbpt.reports.style import png_bytes, short

LONG = "great white shark, white shark, man-eater, Carcharodon carcharias"
TRIGGERS = ["badnet", "blended", "sig", "ssba", "wanet", "trojvqa", "badclip"]
WARMUP = {"loss_bn": 0.5, "clean_accuracy": 0.9}
EPOCH = WARMUP | {"loss_adv": 0.7, "loss_align": 0.01, "inversion_success": 0.4, "cache_hit_rate": 0.8}


def measurement(n_triggers, attack_success):
    result = {"attack_success_rate": attack_success, "robust_accuracy": 0.25}
    return {"clean_accuracy": 1.0, "attacks": dict.fromkeys(TRIGGERS[:n_triggers], result)}


def unit(*shape, seed=0):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


def embeddings(count, n_classes):
    return Embeddings(
        clean=unit(count, 8, seed=1),
        target=unit(2, 8, seed=2),
        triggered=unit(count, 8, seed=3),
        prompts_before=unit(n_classes, 8, seed=4),
        prompts_after=unit(n_classes, 8, seed=5),
        target_row=1,
        called_before=torch.ones(count, dtype=torch.bool),
        called_after=torch.zeros(count, dtype=torch.bool),
    )


def map_figure(count, n_classes):
    drawn = embeddings(count, n_classes)
    return embedding_map_figure(drawn, embedding_map(drawn, 0), "badnet", LONG)


def per_class(n_classes):
    accuracy = torch.linspace(0, 1, n_classes)
    return per_class_figure(accuracy, accuracy.flip(0), [f"{LONG} {index}" for index in range(n_classes)])


def attacks(n_triggers):
    before, after = measurement(n_triggers, 1.0), measurement(n_triggers, 0.0)
    return attacks_figure(before, after, dict.fromkeys(TRIGGERS, LONG))


FIGURES = {
    "summary without attacks": lambda: summary_figure(measurement(0, 0), measurement(0, 0)),
    "summary of one": lambda: summary_figure(measurement(1, 1.0), measurement(1, 0.0)),
    "summary of seven": lambda: summary_figure(measurement(7, 1.0), measurement(7, 0.0)),
    "one attack": lambda: attacks(1),
    "seven attacks": lambda: attacks(7),
    "one epoch": lambda: curves_figure([WARMUP]),
    "fifty epochs": lambda: curves_figure([WARMUP] * 5 + [EPOCH] * 45),
    "two classes": lambda: per_class(2),
    "a thousand classes": lambda: per_class(1000),
    "no change": lambda: per_class_figure(torch.ones(3), torch.ones(3), ["a", "b", "c"]),
    "one perturbation": lambda: perturbations_figure(torch.rand(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), [LONG], [LONG]),
    "six perturbations": lambda: perturbations_figure(
        torch.rand(6, 3, 8, 8), torch.zeros(6, 3, 8, 8), [LONG] * 6, [LONG] * 6
    ),
    "map of few": lambda: map_figure(2, 2),
    "map of many": lambda: map_figure(60, 40),
}


def visible_texts(figure):
    """All texts that are drawn; labels of ticks outside the axes' limits are kept by matplotlib, but not drawn."""
    outside = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            outside |= {
                label for tick in ticks if not low <= tick.get_loc() <= high for label in (tick.label1, tick.label2)
            }
    texts = [text for text in figure.findobj(Text) if text not in outside]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_overlaps_or_is_cut(name):
    if name.startswith("map"):
        pytest.importorskip("sklearn")
    figure = FIGURES[name]()
    png_bytes(figure)
    renderer = figure.canvas.get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in visible_texts(figure)]
    assert boxes
    for text, box in boxes:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
        assert inside, f"{text!r} is cut"
    for index, (text, box) in enumerate(boxes):
        for other, other_box in boxes[index + 1 :]:
            overlap = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
            height = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
            assert overlap <= 1 or height <= 1, f"{text!r} overlaps {other!r}"


def test_the_summary_averages_over_triggers():
    before = {"clean_accuracy": 0.5, "attacks": {}}
    for name, share in (("a", 0.2), ("b", 0.6)):
        before["attacks"][name] = {"attack_success_rate": share, "robust_accuracy": 0.0}
    words = {text.get_text() for text in visible_texts(summary_figure(before, before))}
    assert {"50.0", "40.0", "0.0"} <= words
    assert any("mean of 2 triggers" in word for word in words)


def test_every_trigger_has_its_own_figures():
    before, after = measurement(2, 0.9), measurement(2, 0.1)
    words = [
        text.get_text() for text in visible_texts(attacks_figure(before, after, {"badnet": "dog", "blended": "ox"}))
    ]
    assert words.count("90.0") == words.count("10.0") == 2
    assert {"badnet\n→ dog", "blended\n→ ox"} <= set(words)


def test_class_accuracy_counts_each_class_by_itself():
    labels = torch.tensor([0, 0, 1, 1])
    features = torch.eye(3)[[0, 1, 1, 1]]
    accuracy = class_accuracy(features, labels, torch.eye(3))
    assert accuracy[:2].tolist() == [0.5, 1.0] and accuracy[2].isnan()


def test_the_classes_that_changed_most_are_shown():
    before, after = torch.tensor([0.5, 0.5, 0.5, 0.5, torch.nan]), torch.tensor([0.4, 0.5, 0.9, 0.1, torch.nan])
    assert most_changed(before, after) == [2, 0, 3]
    assert most_changed(before, after, count=2) == [2, 3]


def test_the_map_is_seeded_and_says_who_is_still_fooled():
    pytest.importorskip("sklearn")
    drawn = embeddings(20, 5)
    one, two = embedding_map(drawn, 0), embedding_map(drawn, 0)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert {name: len(places) for name, places in one.items()} == {
        "clean": 20,
        "target": 2,
        "triggered": 20,
        "prompts_before": 5,
        "prompts_after": 5,
    }
    words = " ".join(text.get_text() for text in visible_texts(embedding_map_figure(drawn, one, "badnet", "dog")))
    assert "before: 100%" in words and "after: 0%" in words


def test_long_names_keep_both_ends():
    assert short("banana") == "banana"
    cut = short(LONG, 20)
    assert len(cut) <= 20 and cut.startswith("great white") and cut.endswith("rias")
