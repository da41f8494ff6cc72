import torch
import torch.nn.functional as F

from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.detection.families import FoundTrigger, ImageWide, Patch
from peft_cbpt.training.trigger_pool import FAMILIES, RUNGS, TriggerPool, ladder

PIXELS = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def encode(pixels):
    """Coarse colours, which a little noise leaves as they are."""
    return F.normalize(F.adaptive_avg_pool2d(pixels, 4).flatten(1) - 0.5, dim=1)


def test_the_ladder_ends_where_random_marks_hide_the_images():
    """An encoder that lives on differences of 0.1 in a pixel, and one that sees coarse colours only."""

    def fine(pixels):
        return F.normalize((30 * pixels).sin().flatten(1), dim=1)

    def most(encoder):
        rungs = ladder(encoder, PIXELS, ["image"], keyed_generator("ladder"))
        assert [rung[0].size for rung in rungs] == list(RUNGS[: len(rungs)])
        return rungs[-1][0].size

    assert 0.02 < most(fine) < most(encode)


def test_every_family_has_a_rung():
    def blind(pixels):
        return torch.ones(len(pixels), 1)

    assert len(ladder(blind, PIXELS, list(FAMILIES), keyed_generator("ladder"))) == len(FAMILIES)


def test_a_pool_finds_replaces_sharpens_and_comes_back_from_a_checkpoint(tmp_path):
    pool = TriggerPool([[ImageWide(0.06)], [Patch(0.1, None), Patch(0.1, (0.5, 1.0))]], capacity=2)
    for number in range(4):
        before = list(pool.triggers)
        place = pool.add(encode, PIXELS, 2, keyed_generator("pool", number))
        assert len(pool.triggers) == min(2, number + 1) and not any(pool.triggers[place] is one for one in before)
    one = pool.triggers[0]
    pool.sharpen(0, one.mark, torch.ones_like(one.mark), PIXELS, 0.5)
    assert not torch.equal(pool.triggers[0].mark, one.mark)
    pool.save(tmp_path)
    back = TriggerPool.load(tmp_path, 2, torch.device("cpu"))
    assert back.rungs == pool.rungs
    for saved, loaded in zip(pool.triggers, back.triggers, strict=True):
        assert isinstance(loaded, FoundTrigger) and saved.kind == loaded.kind and torch.equal(saved.mark, loaded.mark)
