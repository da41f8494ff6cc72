"""Every trigger goes through the same table."""

from dataclasses import dataclass, replace

import pytest
import torch

from peft_cbpt.attacks import BadNet, apply_trigger, trigger_from_config, trigger_to_config
from peft_cbpt.errors import InputError

TRIGGERS = {
    "badnet": BadNet(),
    "badnet, larger": BadNet(patch_size=0.125),
    "badnet, random place": BadNet(location="random"),
    "badnet, centre, noise per sample": BadNet(location="center", noise="per_sample"),
}
SIZES = [32, 48, 64, 224]


def images(size, n=3):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(size)), [f"id/{i}" for i in range(n)]


def check_trigger(trigger, size):
    """What `design.md` promises of a trigger."""
    pixels, ids = images(size)
    untouched = pixels.clone()
    marked = trigger.apply_image(pixels, ids)
    assert torch.equal(pixels, untouched), "mutates its input"
    assert marked.shape == pixels.shape and marked.min() >= 0 and marked.max() <= 1, "leaves [0, 1]"
    assert ((marked - pixels).abs().flatten(1).mean(1) > 0).all(), "leaves an image clean"
    alone = torch.cat([trigger.apply_image(pixels[i : i + 1], ids[i : i + 1]) for i in range(len(ids))])
    assert torch.equal(marked, alone), "depends on the batch"
    assert torch.equal(marked, trigger.apply_image(pixels, ids)), "is not deterministic"
    other = replace(trigger, seed=trigger.seed + 1)
    assert not torch.equal(marked, other.apply_image(pixels, ids)), "does not depend on its seed"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TRIGGERS)
def test_trigger(name, size):
    check_trigger(TRIGGERS[name], size)


@dataclass(frozen=True)
class Idle(BadNet):
    def apply_image(self, pixels, sample_ids):
        return pixels.clone()


def test_a_trigger_that_does_nothing_fails_the_table():
    with pytest.raises(AssertionError, match="leaves an image clean"):
        check_trigger(Idle(), 48)


@pytest.mark.parametrize("name", TRIGGERS)
def test_config_round_trip(name):
    assert trigger_from_config(trigger_to_config(TRIGGERS[name])) == TRIGGERS[name]


@pytest.mark.parametrize("name", TRIGGERS)
def test_float_and_uint8_images_are_marked_alike(name):
    pixels, ids = images(48)
    stored = (pixels * 255).round().to(torch.uint8)
    from_bytes = apply_trigger(TRIGGERS[name], stored, ids)
    assert from_bytes.dtype == torch.uint8
    assert torch.equal(from_bytes, apply_trigger(TRIGGERS[name], stored.float() / 255, ids))


def test_badnet_changes_its_patch_only():
    pixels, ids = images(48)
    changed = (BadNet(patch_size=0.125).apply_image(pixels, ids) != pixels).any(1)
    assert changed[:, 42:, 42:].all() and not changed[:, :42].any() and not changed[:, :, :42].any()


def test_one_fixed_patch_is_the_same_on_every_image():
    pixels, ids = images(48)
    marked = BadNet(patch_size=0.125).apply_image(pixels, ids)[..., 42:, 42:]
    assert (marked == marked[:1]).all()


@pytest.mark.parametrize(
    "config",
    [
        {"name": "nothing"},
        {"name": "badnet", "colour": 1},
        {"name": "badnet", "patch_size": 0},
        {"name": "badnet", "location": "left"},
        {"name": "badnet", "noise": "white"},
    ],
)
def test_bad_configs_are_refused(config):
    with pytest.raises(InputError):
        trigger_from_config(config)
