import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_cbpt.common.errors import InputError
from peft_cbpt.data.few_shot import few_shot_order, sample_few_shots
from peft_cbpt.data.images import LabelledImages, load_labelled_images
from peft_cbpt.pocket.dataset import pocket_dataset
from tests.data.layouts import write_damaged_folders

NAMES = ["dog", "banana", "pizza"]


def test_few_shots_do_not_depend_on_order():
    dataset = pocket_dataset("base", "train", 8, NAMES)
    labels, ids = dataset["label"], dataset["sample_id"]
    found = few_shot_order(labels, ids, 0)
    order = np.random.default_rng(0).permutation(len(ids))
    shuffled = few_shot_order([labels[i] for i in order], [ids[i] for i in order], 0)
    assert found == {label: [order[row] for row in rows] for label, rows in shuffled.items()}
    assert all(labels[row] == label for label, rows in found.items() for row in rows)
    assert found != few_shot_order(labels, ids, 1)


def test_the_choice_is_the_same_on_every_machine():
    """Written down once; a change of the rule would change everybody's shots."""
    found = few_shot_order([0] * 6 + [1] * 6, [f"base/train/x/{i}" for i in range(12)], 7)
    assert [rows[:2] for rows in found.values()] == [[0, 4], [9, 6]]


def test_readable_images_give_the_first_of_the_order(poisoned_clip):
    dataset = pocket_dataset("base", "train", 8, NAMES)
    pool = LabelledImages(dataset, poisoned_clip.image_processor)
    shots, skipped = sample_few_shots(pool, 3, seed=0)
    order = few_shot_order(dataset["label"], dataset["sample_id"], 0)
    first = [dataset["sample_id"][row] for rows in order.values() for row in rows[:3]]
    assert shots.dataset["sample_id"] == first and not skipped


@pytest.mark.parametrize("shots, message", [(0, "at least 1"), (9, "only 8 images")])
def test_impossible_shots_are_refused(shots, message, poisoned_clip):
    dataset = pocket_dataset("base", "train", 8, NAMES)
    with pytest.raises(InputError, match=message):
        sample_few_shots(LabelledImages(dataset, poisoned_clip.image_processor), shots, 0)


def test_the_next_image_of_the_class_takes_the_place_of_a_damaged_one(tmp_path, poisoned_clip):
    damaged = write_damaged_folders(tmp_path, NAMES, "train")
    dataset = load_labelled_images(str(tmp_path), "train", NAMES)
    pool = LabelledImages(dataset, poisoned_clip.image_processor)
    n_shots = 60  # of 66 or 67: all damaged images are met, or not, as the seed has it
    shots, skipped = sample_few_shots(pool, n_shots, seed=0)
    met = [
        dataset["sample_id"][row]
        for rows in few_shot_order(dataset["label"], dataset["sample_id"], 0).values()
        for row in rows[: n_shots + 1]
        if dataset["sample_id"][row] in damaged
    ]
    assert {one.sample_id for one in skipped} >= set(met[:1]) and all(one.reason for one in skipped)
    assert not set(shots.dataset["sample_id"]) & set(damaged)
    assert [shots.dataset["label"].count(label) for label in range(3)] == [n_shots] * 3
    assert all(shots[row]["pixel_values"].shape == (3, 48, 48) for row in range(0, len(shots), 10))


def test_too_few_readable_images_name_one_that_is_damaged(tmp_path, poisoned_clip):
    write_damaged_folders(tmp_path, NAMES, "train")
    pool = LabelledImages(load_labelled_images(str(tmp_path), "train", ["banana", "pizza"]), None)
    pool.image_processor = poisoned_clip.image_processor
    with pytest.raises(InputError, match="only 6. images.*train/banana/10.jpg cannot be read: replace or remove it"):
        sample_few_shots(pool, 67, seed=0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(0, 100), st.randoms(use_true_random=False))
def test_the_order_knows_neither_places_nor_other_classes(labels, seed, random):
    ids = [f"image-{row}" for row in range(len(labels))]
    order = few_shot_order(labels, ids, seed)
    assert sorted(row for rows in order.values() for row in rows) == list(range(len(labels)))
    places = random.sample(range(len(labels)), len(labels))
    moved = few_shot_order([labels[place] for place in places], [ids[place] for place in places], seed)
    for label, rows in order.items():
        assert {labels[row] for row in rows} == {label}
        assert [ids[row] for row in rows] == [ids[places[row]] for row in moved[label]]
    alone = [row for row, label in enumerate(labels) if label == labels[0]]
    (own,) = few_shot_order([labels[0]] * len(alone), [ids[row] for row in alone], seed).values()
    assert [alone[row] for row in own] == order[labels[0]]
