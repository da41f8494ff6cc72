import pytest
import torch
import torch.nn.functional as F

from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.detection.families import ImageWide, Wave
from peft_cbpt.detection.found import FoundTrigger
from peft_cbpt.detection.ladder import CLIMBS, Search
from peft_cbpt.training.trigger_pool import FAMILIES, TriggerPool, climbs_of, find_anew

PIXELS = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def encode(pixels):
    """Coarse colours, which a little noise leaves as they are."""
    return F.normalize(F.adaptive_avg_pool2d(pixels, 4).flatten(1) - 0.5, dim=1)


def trigger(size, number=0):
    kind = ImageWide(size)
    return FoundTrigger(kind, kind.at_full_size(kind.draw((16, 16), keyed_generator("mark", number)), PIXELS))


def pool_of(*sizes_and_worths, capacity=9):
    pool = TriggerPool(capacity, torch.eye(8)[:1], 0.5)
    for number, (size, worth) in enumerate(sizes_and_worths):
        pool.add(trigger(size, number), worth)
    return pool


def test_what_a_small_change_does_counts_for_more_and_nothing_is_forgotten():
    pool = pool_of((0.3, 0.9), (0.03, 0.6), (0.03, 0.0))
    assert pool.weights.argmax() == 1 and pool.weights[1] > 0.9 > 0.1 > pool.weights[2] > 0.02
    assert sorted(pool.draw(3, keyed_generator("all"))) == [0, 1, 2]
    assert pool_of((0.3, 0.0), (0.03, 0.0)).weights.tolist() == [0.5, 0.5]


def test_a_family_is_drawn_by_its_worthiest_trigger_however_large_its_changes_are():
    pool = pool_of((0.03, 0.5), (0.03, 0.1))
    for number in range(2):
        kind = Wave(0.2)
        pool.add(FoundTrigger(kind, kind.draw((16, 16), keyed_generator("wave", number))), 0.5)
    assert pool.weights[:2].sum() == pytest.approx(pool.weights[2:].sum())


def test_a_full_pool_lets_go_of_what_would_be_drawn_least():
    pool = pool_of((0.3, 0.9), (0.03, 0.6), (0.1, 0.5), capacity=2)
    assert [one.kind.size for one in pool.triggers] == [0.03, 0.1] and pool.worths == [0.6, 0.5]
    pool.add(trigger(0.3), 1.0)
    assert [one.kind.size for one in pool.triggers] == [0.03, 0.1]


def test_the_first_pool_is_what_a_scan_found_by_where_families_agree():
    apart, there, elsewhere = torch.eye(8)[:4], torch.eye(8)[[7] * 4], torch.eye(8)[[6] * 4]
    found = [("image-wide", there), ("patch", there), ("wave", elsewhere), ("warp", apart)]
    searches = [
        Search(family, 0, trigger(0.02, number), features, apart) for number, (family, features) in enumerate(found)
    ]
    pool = TriggerPool.of_searches(searches, 9, torch.device("cpu"))
    assert [one.mark.tolist() for one in pool.triggers] == [one.trigger.mark.tolist() for one in searches]
    assert (
        len(pool.directions) == 1
        and pool.strength == pytest.approx(0.75**2)
        and pool.worths[0] == pool.worths[1] == pytest.approx(0.75)
    )
    assert pool.worths[2] < 0.25 and pool.worths[3] == 0


def test_the_first_pool_goes_by_what_is_suspected_where_something_is():
    apart, there, elsewhere = torch.eye(8)[:4], torch.eye(8)[[7] * 4], torch.eye(8)[[6] * 4]
    found = [("image-wide", there), ("patch", there), ("wave", elsewhere)]
    searches = [
        Search(family, 0, trigger(0.02, number), features, apart) for number, (family, features) in enumerate(found)
    ]
    pool = TriggerPool.of_searches(searches, 9, torch.device("cpu"), [searches[2].shift])
    assert pool.strength == 1 and int(pool.directions[0].argmax()) == 6 and len(pool.directions) == 1
    assert pool.directions.norm().item() == pytest.approx(1) and max(pool.worths) == pool.worths[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_trigger_is_of_a_place_and_size_of_the_ladder(family):
    found = find_anew(encode, PIXELS, torch.eye(48)[:1], [family], 2, keyed_generator("anew"))
    climbs = [climb for climb in CLIMBS if climb.family == family]
    assert climbs == climbs_of([family])
    assert any(type(found.kind) is type(climb.kind) and found.kind.size in climb.sizes for climb in climbs)


def test_a_pool_sharpens_and_comes_back_from_a_checkpoint(tmp_path):
    pool = pool_of((0.1, 0.2), (0.2, 0.3))
    one = pool.triggers[0]
    pool.sharpen(0, one.mark, torch.ones_like(one.mark), PIXELS, 0.5)
    assert not torch.equal(pool.triggers[0].mark, one.mark)
    pool.save(tmp_path)
    back = TriggerPool.load(tmp_path, 9, torch.device("cpu"))
    assert back.worths == pool.worths and back.strength == 0.5 and torch.equal(back.directions, pool.directions)
    for saved, loaded in zip(pool.triggers, back.triggers, strict=True):
        assert saved.kind == loaded.kind and torch.equal(saved.mark, loaded.mark)
