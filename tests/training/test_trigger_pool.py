import torch
import torch.nn.functional as F

from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.training.trigger_pool import FAMILIES, RUNGS, TriggerPool

PIXELS = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def encode(pixels):
    """Coarse colours, which a little noise leaves as they are."""
    return F.normalize(F.adaptive_avg_pool2d(pixels, 4).flatten(1) - 0.5, dim=1)


def climbed(encoder, family="image"):
    pool = TriggerPool([family], capacity=20)
    pool.climb(encoder, PIXELS, family, 5, keyed_generator("climb"))
    assert [one.kind.size for one in pool.triggers] == list(RUNGS[: len(pool.triggers)])
    return pool.triggers[-1].kind.size


def test_a_family_stops_where_a_trigger_collapses_images_or_random_marks_hide_them():
    def fine(pixels):
        """Lives on differences of 0.1 in a pixel."""
        return F.normalize((30 * pixels).sin().flatten(1), dim=1)

    def backdoored(pixels):
        """Any change of pixels sends every image to one place."""
        key = 10_000 * (pixels - PIXELS).square().mean((1, 2, 3))[:, None]
        return F.normalize(F.pad(encode(pixels), (0, 1)) + F.pad(key, (48, 0)), dim=1)

    assert climbed(backdoored) == RUNGS[0] and climbed(fine) < climbed(encode)


def test_every_family_begins_with_its_smallest_size():
    def blind(pixels):
        return torch.ones(len(pixels), 1) + 0 * pixels.mean()

    assert all(climbed(blind, family) == RUNGS[0] for family in FAMILIES)


def test_a_pool_finds_replaces_the_harmless_sharpens_and_comes_back_from_a_checkpoint(tmp_path):
    pool = TriggerPool(["image", "patch"], 2, {"image": 2, "patch": 3})
    for number in range(4):
        before, dangers = list(pool.triggers), list(pool.dangers)
        place = pool.add(encode, PIXELS, ["image", "patch"][number % 2], 2, keyed_generator("pool", number))
        assert len(pool.triggers) == min(2, number + 1) and not any(pool.triggers[place] is one for one in before)
        assert number < 2 or place == dangers.index(min(dangers))
    one = pool.triggers[0]
    pool.sharpen(0, one.mark, torch.ones_like(one.mark), PIXELS, 0.5)
    assert not torch.equal(pool.triggers[0].mark, one.mark)
    pool.save(tmp_path)
    back = TriggerPool.load(tmp_path, pool.families, 2, torch.device("cpu"))
    assert back.rungs == pool.rungs and back.dangers == pool.dangers
    for saved, loaded in zip(pool.triggers, back.triggers, strict=True):
        assert saved.kind == loaded.kind and torch.equal(saved.mark, loaded.mark)


def test_dangerous_triggers_are_drawn_more_often():
    pool = TriggerPool(["image"], 3, {"image": 0})
    for number in range(3):
        pool.add(encode, PIXELS, "image", 1, keyed_generator("pool", number))
    pool.dangers = [0.9, 0.0, 0.0]
    drawn = [pool.draw(1, keyed_generator("draw", number))[0] for number in range(60)]
    assert drawn.count(0) > 40 and set(drawn) == {0, 1, 2}
    assert sorted(pool.draw(3, keyed_generator("all"))) == [0, 1, 2]
