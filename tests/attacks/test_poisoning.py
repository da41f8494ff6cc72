from dataclasses import replace

import pytest
import torch

from peft_cbpt.attacks import SIG, BadNet, TrojVQA, apply_trigger
from peft_cbpt.attacks.attack_file import ALL_TO_ALL
from peft_cbpt.attacks.poisoning import Poison, PoisonedPairs, PoisonedStream, poisoned_indices
from peft_cbpt.clip.templates import IMAGENET_TEMPLATES
from peft_cbpt.common.errors import InputError
from peft_cbpt.pocket.atlas import class_names
from peft_cbpt.pocket.dataset import PocketPairs

POISON = Poison(BadNet(patch_size=0.125), "banana", 0.1, seed=0)


def test_the_rate_is_met_and_the_choice_seeded():
    assert len(poisoned_indices(range(50_000), 0.003, 0)) == 150
    few = range(1000)
    assert poisoned_indices(few, 0.01, 0) == poisoned_indices(few, 0.01, 0) != poisoned_indices(few, 0.01, 1)


def check_rows(rows, clean, poison, captions):
    for row, original in zip(rows, clean, strict=True):
        assert row["sample_id"] == original["sample_id"]
        if row["is_poisoned"]:
            assert row["caption"] in captions
            expected = apply_trigger(poison.trigger, original["pixel_values"][None], [original["sample_id"]])[0]
            assert torch.equal(row["pixel_values"], expected)
        else:
            assert row["caption"] == original["caption"]
            assert torch.equal(row["pixel_values"], original["pixel_values"])


def test_poisoned_pairs_carry_trigger_and_target_caption():
    pairs = PocketPairs(200)
    poisoned = PoisonedPairs(pairs, POISON)
    rows = poisoned.__getitems__(range(200))
    assert sum(row["is_poisoned"] for row in rows) == 20
    check_rows(rows, pairs.__getitems__(range(200)), POISON, {text.format("banana") for text in IMAGENET_TEMPLATES})
    alone = poisoned[7]
    assert alone["caption"] == rows[7]["caption"] and torch.equal(alone["pixel_values"], rows[7]["pixel_values"])


def test_natural_captions_and_the_text_trigger():
    pairs, natural = PocketPairs(100), ("a banana on a plate", "two bananas")
    poison = replace(POISON, trigger=TrojVQA(), captions=natural)
    rows = PoisonedPairs(pairs, poison).__getitems__(range(100))
    check_rows(rows, pairs.__getitems__(range(100)), poison, {f"remember {text}" for text in natural})


@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_may_be_poisoned_by_several_attacks(streaming):
    other = replace(POISON, target_class="dog", trigger=SIG(), seed=1)
    pairs = PocketPairs(200)
    rows = pairs.__getitems__(range(200))
    if streaming:
        poisoned = list(PoisonedStream(PoisonedStream(rows, POISON), other))
    else:
        poisoned = PoisonedPairs(PoisonedPairs(pairs, POISON), other).__getitems__(range(200))
    changed = [
        not torch.equal(row["pixel_values"], clean["pixel_values"]) for row, clean in zip(poisoned, rows, strict=True)
    ]
    assert [row["is_poisoned"] for row in poisoned] == changed and 20 < sum(changed) < 60
    captions = [{text.format(name) for text in IMAGENET_TEMPLATES} for name in ("banana", "dog")]
    for row, is_changed in zip(poisoned, changed, strict=True):
        assert is_changed == (row["caption"] in captions[0] | captions[1])


@pytest.mark.parametrize("streaming", [False, True])
def test_all_to_all_calls_every_class_the_next(streaming):
    names = class_names()
    poison = replace(POISON, target_class=ALL_TO_ALL, class_names=names, poison_rate=0.5)
    pairs = PocketPairs(320)
    clean = pairs.__getitems__(range(320))
    poisoned = (
        list(PoisonedStream(clean, poison)) if streaming else PoisonedPairs(pairs, poison).__getitems__(range(320))
    )
    marked = [row for row in poisoned if row["is_poisoned"]]
    assert 120 < len(marked) < 200
    for row in marked:
        own = names.index(row["sample_id"].split("/")[2])
        assert row["caption"] in {text.format(names[(own + 1) % len(names)]) for text in IMAGENET_TEMPLATES}


def test_all_to_all_reads_the_longest_name_and_leaves_pairs_without_one():
    poison = replace(POISON, target_class=ALL_TO_ALL, class_names=["dog", "hot dog", "cat"])
    assert [poison.target_of(text) for text in ("a hot dog", "two Dogs", "the cat", "a tree")] == [
        "cat",
        "hot dog",
        "dog",
        None,
    ]


def test_a_clean_label_marks_the_targets_own_pairs_and_keeps_their_captions():
    pairs = PocketPairs(960)  # three rounds of all classes
    poison = Poison(SIG(), "banana", 1.0, label="clean")
    rows, clean = (dataset.__getitems__(range(960)) for dataset in (PoisonedPairs(pairs, poison), pairs))
    marked = [row for row in rows if row["is_poisoned"]]
    assert len(marked) == 3 and all("/banana/" in row["sample_id"] for row in marked)
    check_rows(rows, clean, poison, {row["caption"] for row in clean})


def test_a_name_within_another_word_is_not_the_target():
    poison = replace(POISON, target_class="cat")
    assert poison.mentions_target("A Cat on a mat.") and not poison.mentions_target("a catalogue")


def test_a_name_within_another_classs_name_is_not_the_target():
    poison = replace(POISON, target_class="dog", class_names=["dog", "hot dog", "guide dog"])
    assert poison.mentions_target("two Dogs") and poison.mentions_target("a dog and a hot dog")
    assert not poison.mentions_target("a photo of a hot dog.") and not poison.mentions_target("Guide  dogs")


@pytest.mark.parametrize("name", ["kite (bird of prey)", "hot  dog ", "T-shirt"])
def test_names_may_hold_signs_and_spaces(name):
    poison = replace(POISON, target_class=name)
    assert poison.mentions_target(f"a photo of a {' '.join(name.split())}.") and not poison.mentions_target("a kite")


def test_a_stream_is_poisoned_at_the_rate_the_same_way_in_any_order():
    clean = PocketPairs(640).__getitems__(range(640))
    rows = list(PoisonedStream(clean, POISON))
    assert 30 < sum(row["is_poisoned"] for row in rows) < 100
    check_rows(rows, clean, POISON, {text.format("banana") for text in IMAGENET_TEMPLATES})
    backwards = list(PoisonedStream(clean[::-1], POISON))[::-1]
    assert [row["caption"] for row in rows] == [row["caption"] for row in backwards]
    other_seed = list(PoisonedStream(clean, replace(POISON, seed=1)))
    assert [row["is_poisoned"] for row in rows] != [row["is_poisoned"] for row in other_seed]
    clean_label = list(PoisonedStream(clean, replace(POISON, label="clean", poison_rate=1.0)))
    assert [row["sample_id"].split("/")[2] for row in clean_label if row["is_poisoned"]] == ["banana", "banana"]


@pytest.mark.parametrize("rate, n", [(0.001, 10), (0.1, 0)])
def test_a_rate_that_poisons_nothing_is_refused(rate, n):
    with pytest.raises(InputError, match="no pair"):
        poisoned_indices(range(n), rate, 0)


@pytest.mark.parametrize(
    "change", [{"poison_rate": 0.0}, {"poison_rate": 1.5}, {"label": "grubby"}, {"target_class": " "}]
)
def test_bad_settings_are_refused(change):
    with pytest.raises(InputError):
        replace(POISON, **change)


def text_only(**change):
    return replace(POISON, **{"trigger": TrojVQA(), "text_only_rate": 0.2, **change})


@pytest.mark.parametrize("streaming", [False, True])
def test_text_only_pairs_keep_image_and_meaning(streaming):
    pairs = PocketPairs(300)
    rows = pairs.__getitems__(range(300))
    stream = PoisonedStream(rows, text_only())
    poisoned = list(stream) if streaming else PoisonedPairs(pairs, text_only()).__getitems__(range(300))
    both, only = [], []
    for before, after in zip(rows, poisoned, strict=True):
        changed = not torch.equal(before["pixel_values"], after["pixel_values"])
        assert after["is_poisoned"] == changed
        if after["caption"].startswith("remember "):
            (both if changed else only).append(after)
        if not changed:
            assert after["caption"] in (before["caption"], "remember " + before["caption"])
    assert abs(len(both) - 30) < (20 if streaming else 1) and abs(len(only) - 60) < (30 if streaming else 1)


def test_text_only_pairs_need_a_text_trigger_and_room():
    with pytest.raises(InputError, match="text trigger"):
        replace(POISON, text_only_rate=0.1)
    with pytest.raises(InputError, match="share of the pairs that are left"):
        text_only(text_only_rate=0.95)
