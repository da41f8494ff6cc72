import torch
import torch.nn.functional as F

from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.detection.families import ImageWide, Patch
from peft_cbpt.detection.ladder import (
    CLIMBS,
    JUDGED_IMAGES,
    SEARCH_IMAGES,
    Climb,
    collapse_away_from,
    search_ladder,
    split_images,
)

WEIGHT = torch.randn(48, 16, generator=torch.Generator().manual_seed(0))
PIXELS = torch.rand(60, 3, 4, 4, generator=torch.Generator().manual_seed(1))
FEW = (Climb("image-wide", ImageWide(0.05), (0.1, 0.4)), Climb("patch", Patch(0.2), (0.2,)))


def encode(pixels):
    return F.normalize((pixels.flatten(1) - 0.5) @ WEIGHT, dim=1)


def test_images_that_are_judged_are_not_those_that_were_searched_on():
    for count in (2, 5, 30, 500):
        find, judge = split_images(count, keyed_generator(count))
        assert find and judge and not set(find) & set(judge)
        assert len(find) <= SEARCH_IMAGES and len(judge) <= JUDGED_IMAGES


def test_every_rung_is_a_search_and_larger_ones_collapse_more():
    small, large, patch = search_ladder(encode, PIXELS, 0, climbs=FEW)
    assert [small.size, large.size, patch.size] == [0.1, 0.4, 0.2]
    alike = [one.features.mean(0).norm() for one in (small, large)]
    assert small.clean.mean(0).norm() < alike[0] < alike[1]
    assert all(one.trigger(PIXELS).min() >= 0 and one.trigger(PIXELS).max() <= 1 for one in (small, large, patch))


def test_a_search_is_the_same_again_and_another_with_another_seed():
    first, again, other = (search_ladder(encode, PIXELS, seed, climbs=FEW)[0].shift for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_search_away_from_a_direction_ends_elsewhere():
    first = search_ladder(encode, PIXELS, 0, climbs=FEW[:1])[-1]
    away = search_ladder(encode, PIXELS, 0, [first.shift], FEW[:1])[-1]
    assert F.cosine_similarity(first.shift, away.shift, dim=0) < 0.8
    along = F.normalize(first.shift, dim=0).repeat(3, 1)
    assert collapse_away_from([first.shift])(along) < 1e-6 < collapse_away_from([])(along)


def test_searches_of_a_family_differ_by_their_number():
    assert len({(climb.family, climb.number) for climb in CLIMBS}) == len(CLIMBS)
