"""Properties of the prompts of Eq. 8, whatever the classes, M and position are."""

import string

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_cbpt import CBPTConfig
from peft_cbpt.tuner.prompts import ClassPrompts, RecordedIds, check_class_names, learned_prompts, length_groups

# Tokens of a prompt (M = 4), and how many of ImageNet's 1,000 class names have so many
NAME_LENGTHS = ((8, 244), (9, 510), (10, 155), (11, 49), (12, 24), (13, 9), (14, 7), (15, 1), (18, 1))
BOS, PERIOD, EOS = 1000, 999, 1001
NUM_PRECEDING = {"end": lambda m: m, "middle": lambda m: m // 2, "front": lambda m: 0}

names_as_ids = st.lists(st.lists(st.integers(0, 998), min_size=1, max_size=6), min_size=2, max_size=8, unique_by=tuple)
num_context_tokens = st.integers(1, 9)
positions = st.sampled_from(sorted(NUM_PRECEDING))
cases = st.tuples(names_as_ids, num_context_tokens, positions)


def recorded(names: list[list[int]]) -> RecordedIds:
    return RecordedIds(
        class_token_ids=[[*name, PERIOD] for name in names],
        class_name_lengths=[len(name) for name in names],
        template_token_ids=[[BOS, 7, *name, EOS] for name in names],
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def class_prompts(names: list[list[int]], m: int, position: str) -> ClassPrompts:
    ids = recorded(names)
    return ClassPrompts(learned_prompts(ids, m, position), ids)


@settings(deadline=None)
@given(cases)
def test_every_prompt_is_its_name_and_its_own_context_in_order(case: tuple) -> None:
    names, m, position = case
    for index, row in enumerate(learned_prompts(recorded(names), m, position)):
        assert row[0] == BOS and row[-2:] == ([PERIOD, EOS] if position == "end" else row[-2:])
        assert row[-1] == EOS and row.count(EOS) == row.count(BOS) == row.count(PERIOD) == 1
        assert row.index(PERIOD) == len(row) - 2
        virtual = [-1 - token for token in row if token < 0]
        assert virtual == list(range(index * m, (index + 1) * m))
        assert [token for token in row if 0 <= token < PERIOD] == names[index]
        p = NUM_PRECEDING[position](m)
        assert row[1 + p : 1 + p + len(names[index])] == names[index]


@settings(deadline=None)
@given(cases, st.data())
def test_any_choice_of_classes_has_the_same_rows(case: tuple, data: st.DataObject) -> None:
    prompts = class_prompts(*case)
    indices = data.draw(st.lists(st.integers(0, len(case[0]) - 1), min_size=1, max_size=10))
    for learned in (True, False):
        everything = prompts.input_ids(learned)
        for choice in (indices, torch.tensor(indices), tuple(indices)):
            some = prompts.input_ids(learned, choice)
            length = some.shape[1]
            assert torch.equal(some, everything[indices][:, :length])
            assert (everything[indices][:, length:] == EOS).all()


@settings(deadline=None)
@given(cases)
def test_rows_are_as_long_as_the_longest_and_filled_with_eos(case: tuple) -> None:
    names, m, _ = case
    prompts = class_prompts(*case)
    ids = prompts.input_ids(learned=True)
    assert prompts.input_ids(learned=True) is ids, "the prompts of all classes are made once"
    assert ids.shape == (len(names), 1 + m + max(map(len, names)) + 2)
    lengths = (ids == EOS).int().argmax(dim=1) + 1
    assert lengths.tolist() == [len(name) + m + 3 for name in names]
    assert torch.equal(ids.argmax(dim=1) + 1, lengths), "the first EOS must be the highest id of the row"
    assert all((row[length:] == EOS).all() for row, length in zip(ids, lengths, strict=True))


@settings(deadline=None)
@given(st.lists(st.text(string.ascii_letters + " \t\n", min_size=1), min_size=2, max_size=6))
def test_names_keep_their_words(names: list[str]) -> None:
    words = [name.split() for name in names]
    if [] in words or len({tuple(name) for name in words}) < len(names):
        return
    assert [name.split(" ") for name in check_class_names(names)] == words


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text(string.ascii_lowercase + " ()", min_size=1, max_size=9), min_size=2, max_size=5),
    num_context_tokens,
    positions,
)
def test_the_tokenizer_gives_the_words_of_the_template(tokenizer, names, m: int, position: str) -> None:
    """The learned prompt without its context is the tokenizer's own prompt of the name and a period."""
    try:
        config = CBPTConfig(class_names=names, num_context_tokens=m, class_token_position=position)
    except ValueError:
        return
    recorded_ids = config.tokenize(tokenizer).recorded_ids
    for name, row, template in zip(
        config.class_names,
        learned_prompts(recorded_ids, m, position),
        recorded_ids.template_token_ids,
        strict=True,
    ):
        assert [token for token in row if token >= 0] == tokenizer(f"{name}.").input_ids
        assert template == tokenizer(f"a photo of a {name}.").input_ids


@settings(deadline=None)
@given(st.lists(st.integers(1, 77), min_size=1, max_size=300), st.none() | st.integers(1, 300))
def test_groups_hold_every_prompt_once_with_its_neighbours_by_length(lengths: list[int], size: int | None) -> None:
    groups = length_groups(lengths, size)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    assert max(map(len, groups)) <= (size or 38) and (size or len(groups) <= 8)
    grouped = [lengths[place] for group in groups for place in group]
    assert grouped == sorted(lengths, reverse=True)


def test_little_is_filled_up_with_the_class_names_of_imagenet() -> None:
    lengths = [length for length, count in NAME_LENGTHS for _ in range(count)]
    filled = sum(len(group) * max(lengths[place] for place in group) for group in length_groups(lengths))
    assert 1 - sum(lengths) / (1000 * max(lengths)) > 0.4 > 0.1 > 1 - sum(lengths) / filled
