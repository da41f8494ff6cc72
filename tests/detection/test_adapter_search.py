"""Heads over a made-up encoder: images have a class each, and a pattern of pixels that only a hostile head reads."""

import pytest
import torch
import torch.nn.functional as F

import peft_cbpt.detection.adapter_search as adapter_search
from peft_cbpt.detection.adapter_search import Excess, adapter_passes, search_adapter, shared_answers
from peft_cbpt.detection.adapter_verdict import weigh_adapter
from peft_cbpt.detection.families import ImageWide
from peft_cbpt.detection.found import FoundTrigger
from peft_cbpt.detection.heads import Heads
from peft_cbpt.detection.ladder import Search
from peft_cbpt.detection.reading import Vocabulary

N_CLASSES, SIDE, TARGET = 12, 8, 5
PATTERN = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
CONTENT = torch.randn(N_CLASSES, 3 * SIDE * SIDE, generator=torch.Generator().manual_seed(1)) / 14


def encode(pixels):
    change = (pixels - 0.5).flatten(1)
    return F.normalize(torch.cat([change @ CONTENT.T, 0.4 * change @ PATTERN.flatten()[:, None]], 1), dim=1)


def clean_pixels(n=48):
    generator = torch.Generator().manual_seed(2)
    shown = CONTENT[torch.arange(n) % N_CLASSES].unflatten(1, (3, SIDE, SIDE))
    noise = torch.randn(n, 3, SIDE, SIDE, generator=generator)
    return (0.5 + 2 * shown + 0.02 * noise).clamp(0, 1)


def heads(hostile):
    undefended = torch.eye(N_CLASSES, N_CLASSES + 1)
    adapted = undefended + 0.02 * torch.randn(undefended.shape, generator=torch.Generator().manual_seed(3))
    if hostile:
        adapted[TARGET, -1] = 2.0
    return Heads(F.normalize(adapted, dim=1), undefended, 20.0)


def verdict_of(two):
    tried = search_adapter(encode, clean_pixels(), two, 0)
    return tried, weigh_adapter(
        tried, Vocabulary([f"class {i}" for i in range(N_CLASSES)], N_CLASSES, two.adapted), 1.0
    )


def test_a_head_that_reads_a_pattern_is_found_and_its_target_named():
    tried, weighed = verdict_of(heads(hostile=True))
    assert tried[0].label == TARGET, "the searches that aim at no class come to it"
    assert weighed.answer == "backdoored" and [one.name for one in weighed.findings] == [f"class {TARGET}"]
    assert weighed.findings[0].kind == "adapter" and weighed.findings[0].success_rate > 0.8


def test_a_head_that_is_only_tuned_is_not_accused():
    tried, weighed = verdict_of(heads(hostile=False))
    assert weighed.answer == "clean" and max(one.strength for one in tried) < 0.3


def test_what_is_tried_does_not_grow_with_the_number_of_classes(monkeypatch):
    monkeypatch.setattr(adapter_search, "TRIED_CLASSES", 5)
    tried, _ = verdict_of(heads(hostile=False))
    assert len(tried) == len({one.label for one in tried}) == 5
    assert adapter_passes(10, 96).gradient == adapter_passes(1000, 96).gradient


def test_shared_answers_are_one_where_all_images_are_sure_of_the_same():
    objective = shared_answers(torch.eye(4), 100.0)
    assert objective(torch.eye(4)[[1, 1, 1]]).item() == pytest.approx(1)
    assert objective(torch.eye(4)).item() == pytest.approx(1 / 4)


def excess(label, success, undefended=0.05):
    features = F.normalize(torch.randn(4, N_CLASSES, generator=torch.Generator().manual_seed(label)), dim=1)
    search = Search("adapter", 0, FoundTrigger(ImageWide(0.025), torch.zeros(3, 4, 4)), features, features)
    return Excess(label, search, success, undefended)


NAMES = Vocabulary([f"class {i}" for i in range(N_CLASSES)], N_CLASSES, torch.eye(N_CLASSES))


@pytest.mark.parametrize(("success", "answer"), [(0.1, "clean"), (0.3, "unsure"), (0.9, "backdoored")])
def test_the_verdict_follows_what_the_adapter_adds(success, answer):
    others = [excess(label, 0.05 + 0.02 * (label % 4)) for label in range(1, 9)]
    assert weigh_adapter([excess(0, success), *others], NAMES, 1.0).answer == answer


def test_two_targets_do_not_hide_each_other():
    others = [excess(label, 0.07) for label in range(2, 10)]
    weighed = weigh_adapter([excess(0, 0.9), excess(1, 0.8), *others], NAMES, 1.0)
    assert [one.name for one in weighed.findings] == ["class 0", "class 1"]


def test_what_the_undefended_head_loses_as_well_counts_for_nothing():
    easy = [excess(label, 0.9, undefended=0.9) for label in range(8)]
    assert weigh_adapter(easy, NAMES, 1.0).answer == "clean"
