import random

import pytest

from peft_cbpt.tuner.buckets import length_buckets

# Tokens of a prompt (M = 4) and how many of ImageNet's 1,000 class names have so many, in about these shares
IMAGENET_LIKE = [7] * 260 + [8] * 330 + [9] * 190 + [10] * 90 + [11] * 60 + [12] * 40 + [14] * 20 + [16] * 8 + [19] * 2


def padding(lengths, groups):
    filled = sum(len(group) * max(lengths[index] for index in group) for group in groups)
    return 1 - sum(lengths) / filled


@pytest.mark.parametrize(
    "lengths",
    [IMAGENET_LIKE, [5], [5, 5], [3, 60], [1, 2, 3, 4, 5], random.Random(0).choices(range(6, 78), k=300)],
    ids=["ImageNet", "one", "equal", "two", "short", "any"],
)
def test_padding_stays_below_the_bound_with_few_groups(lengths):
    random.Random(1).shuffle(lengths)
    groups = length_buckets(lengths)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert padding(lengths, groups) < 0.15
    assert len(groups) <= 7 and len(groups) <= len(set(lengths))
    longest = [max(lengths[index] for index in group) for group in groups]
    assert longest == sorted(longest, reverse=True)


def test_one_group_would_pad_more():
    assert (
        padding(IMAGENET_LIKE, [list(range(len(IMAGENET_LIKE)))])
        > 0.5
        > 0.15
        > padding(IMAGENET_LIKE, length_buckets(IMAGENET_LIKE))
    )
