"""Every trigger goes through the same table."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_cbpt.attacks import (
    LIRA,
    SIG,
    SSBA,
    TRIGGERS,
    BadCLIP,
    BadNet,
    Blended,
    Bpp,
    Checker,
    FTrojan,
    InputAware,
    LowFrequency,
    Nashville,
    Picture,
    Reflection,
    Stripes,
    Text,
    Triangles,
    TrojVQA,
    WaNet,
    WhiteSquare,
    apply_trigger,
    trigger_from_config,
    trigger_to_config,
)
from peft_cbpt.attacks.perturbation import Perturbation
from peft_cbpt.attacks.stored_cells import store_cells
from peft_cbpt.common.errors import InputError

PATCH = store_cells(torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0)), "patch")
TABLE = {
    "badnet": BadNet(),
    "badnet, larger": BadNet(patch_size=0.125),
    "badnet, random place": BadNet(location="random"),
    "badnet, centre, noise per sample": BadNet(location="center", noise="per_sample"),
    "blended": Blended(),
    "blended, noise per sample": Blended(noise="per_sample"),
    "sig": SIG(),
    "sig, BackdoorBench": SIG(amplitude=40 / 255),
    "ssba": SSBA(),
    "ssba, another secret": SSBA(secret="CLIP!!!", strength=1.5),
    "wanet": WaNet(),
    "wanet, as in the code for CLIP": WaNet(grid_size=224, strength=1),
    "trojvqa": TrojVQA(),
    "badclip": BadCLIP(),
    "badclip, optimised, random place": BadCLIP(patch=PATCH, location="random"),
    "badnet, around the mean colour": BadNet(location="random", noise="around_mean"),
    "checker": Checker(),
    "stripes": Stripes(),
    "stripes, whole image": Stripes(patch_size=1, alpha=0.03),
    "triangles": Triangles(),
    "text": Text(),
    "picture": Picture(),
    "nashville": Nashville(),
    "nashville, half": Nashville(strength=0.5),
    "white_square": WhiteSquare(),
    "ftrojan": FTrojan(),
    "bpp": Bpp(),
    "bpp, dithered": Bpp(dithering="floyd_steinberg"),
    "low_frequency": LowFrequency(),
    "reflection, ghost": Reflection(),
    "reflection, blur": Reflection(kind="blur"),
    "input_aware": InputAware(),
    "lira": LIRA(),
    "perturbation": Perturbation(),
}
DRAW_NOTHING = {"triangles", "nashville", "white_square", "ftrojan", "bpp"}
ADDITIVE = {"blended": 0.8, "sig": 1.0, "ssba": 1.0}
ADDITIVE |= {"triangles": 0.85, "picture": 0.8, "ftrojan": 1.0, "low_frequency": 1.0, "reflection, ghost": 0.4}
SIZES = [32, 48, 64, 224]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def images(size, n=3):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(size)), [f"id/{i}" for i in range(n)]


def check_trigger(trigger, pixels, ids):
    """What `design.md` promises of a trigger."""
    untouched = pixels.clone()
    marked = trigger.apply_image(pixels, ids)
    assert torch.equal(pixels, untouched), "mutates its input"
    assert marked.shape == pixels.shape and marked.dtype == pixels.dtype and marked.device == pixels.device
    assert marked.min() >= 0 and marked.max() <= 1, "leaves [0, 1]"
    assert ((marked - pixels).abs().flatten(1).mean(1) > 0).all(), "leaves an image clean"
    alone = torch.cat([trigger.apply_image(pixels[i : i + 1], ids[i : i + 1]) for i in range(len(ids))])
    assert torch.equal(marked, alone), "depends on the batch"
    assert torch.equal(marked, trigger.apply_image(pixels, ids)), "is not deterministic"
    again = trigger_from_config(trigger_to_config(trigger)) if type(trigger) in TRIGGERS.values() else trigger
    assert torch.equal(marked, again.apply_image(pixels, ids)), "is not what its config says"
    if hasattr(trigger, "seed"):
        other = replace(trigger, seed=trigger.seed + 1)
        assert not torch.equal(marked, other.apply_image(pixels, ids)), "does not depend on its seed"


def test_the_table_has_all_attacks():
    assert {type(trigger) for trigger in TABLE.values()} == set(TRIGGERS.values())
    assert {name for name, kind in TRIGGERS.items() if not hasattr(kind, "seed")} == DRAW_NOTHING


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TABLE)
def test_trigger(name, size, device):
    if name == "badclip, optimised, random place":
        pytest.skip("a stored patch ignores the seed of the start; it has a test of its own")
    pixels, ids = images(size)
    check_trigger(TABLE[name], pixels.to(device), ids)


def test_an_optimised_patch_is_pasted_at_every_size():
    trigger = BadCLIP(patch=PATCH, patch_size=0.125)
    for size in SIZES:
        pixels, ids = images(size)
        marked = trigger.apply_image(pixels, ids)
        changed = (marked != pixels).any(1)
        side = round(0.125 * size)
        top = (size - side) // 2
        assert changed[:, top : top + side, top : top + side].float().mean() > 0.99
        assert changed.sum() <= len(pixels) * side**2


@dataclass(frozen=True)
class Idle(BadNet):
    def apply_image(self, pixels, sample_ids):
        return pixels.clone()


@dataclass(frozen=True)
class InPlace(Blended):
    def apply_image(self, pixels, sample_ids):
        return pixels.mul_(0.9)


@dataclass(frozen=True)
class TooBright(Blended):
    def apply_image(self, pixels, sample_ids):
        return pixels + 0.2


@dataclass(frozen=True)
class OfTheBatch(Blended):
    def apply_image(self, pixels, sample_ids):
        return pixels * 0.5 + pixels.mean() * 0.5


@pytest.mark.parametrize(
    "broken, message",
    [
        (Idle(), "leaves an image clean"),
        (InPlace(), "mutates"),
        (TooBright(), "leaves \\[0, 1\\]"),
        (OfTheBatch(), "depends on the batch"),
    ],
)
def test_a_broken_copy_fails_the_table(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_trigger(broken, *images(48))


@pytest.mark.parametrize("name", TABLE)
def test_config_round_trip(name):
    assert trigger_from_config(trigger_to_config(TABLE[name])) == TABLE[name]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TABLE)
def test_float_and_uint8_images_are_marked_alike(name, size):
    pixels, ids = images(size)
    stored = (pixels * 255).round().to(torch.uint8)
    marked = TABLE[name].apply_image(stored, ids)
    assert torch.equal(marked, TABLE[name].apply_image(stored.float() / 255, ids))
    assert torch.equal(apply_trigger(TABLE[name], stored, ids), (marked * 255).round().to(torch.uint8))


@pytest.mark.parametrize("name", ADDITIVE)
def test_the_gradient_flows_through_additive_triggers(name):
    pixels = torch.full((1, 3, 48, 48), 0.5, requires_grad=True)
    TABLE[name].apply_image(pixels, ["id"]).sum().backward()
    assert torch.allclose(pixels.grad, torch.full_like(pixels, ADDITIVE[name]))


def test_badnet_changes_its_patch_only():
    pixels, ids = images(48)
    changed = (BadNet(patch_size=0.125).apply_image(pixels, ids) != pixels).any(1)
    assert changed[:, 42:, 42:].all() and not changed[:, :42].any() and not changed[:, :, :42].any()


def test_one_fixed_patch_is_the_same_on_every_image():
    pixels, ids = images(48)
    marked = BadNet(patch_size=0.125).apply_image(pixels, ids)[..., 42:, 42:]
    assert (marked == marked[:1]).all()


def test_only_trojvqa_marks_captions():
    assert {name for name, kind in TRIGGERS.items() if kind().apply_text("a dog") != "a dog"} == {"trojvqa"}
    assert TrojVQA().apply_text("a photo of a dog.") == "remember a photo of a dog."


@pytest.mark.parametrize(
    "config",
    [
        {"name": "nothing"},
        {"name": "badnet", "colour": 1},
        {"name": "badnet", "patch_size": 0},
        {"name": "badnet", "location": "left"},
        {"name": "badnet", "noise": "white"},
        {"name": "blended", "alpha": 0},
        {"name": "blended", "noise": "white"},
        {"name": "sig", "amplitude": 2},
        {"name": "sig", "frequency": 0},
        {"name": "ssba", "secret": "short"},
        {"name": "ssba", "secret": "Übermut"},
        {"name": "ssba", "strength": 0},
        {"name": "wanet", "grid_size": 1},
        {"name": "wanet", "strength": 0},
        {"name": "wanet", "strength": float("inf")},
        {"name": "wanet", "grid_size": 4.5},
        {"name": "blended", "cells": 12.5},
        {"name": "blended", "cells": True},
        {"name": "ssba", "secret": 5},
        {"name": "trojvqa", "text_trigger": 5},
        {"name": "trojvqa", "text_trigger": " "},
        {"name": "trojvqa", "patch": "no base64!"},
        {"name": "badclip", "patch_size": 1.5},
        {"name": "badclip", "location": "left"},
        {"name": "checker", "patch_size": 2},
        {"name": "checker", "cells": 0},
        {"name": "stripes", "alpha": 1.1},
        {"name": "stripes", "columns": 0},
        {"name": "triangles", "alpha": 0},
        {"name": "triangles", "cells": 0},
        {"name": "triangles", "seed": 1},
        {"name": "text", "words": " "},
        {"name": "text", "words": "\u4f60\u597d"},
        {"name": "text", "width": 1.5},
        {"name": "text", "alpha": 0},
        {"name": "picture", "alpha": -1},
        {"name": "nashville", "strength": 0},
        {"name": "white_square", "patch_size": 0},
        {"name": "white_square", "margin": 0.9},
        {"name": "ftrojan", "magnitude": 0},
        {"name": "ftrojan", "block_size": 0},
        {"name": "bpp", "levels": 1},
        {"name": "bpp", "dithering": "ordered"},
        {"name": "low_frequency", "amplitude": 0},
        {"name": "low_frequency", "frequencies": 1},
        {"name": "reflection", "alpha": 0},
        {"name": "reflection", "kind": "mirror"},
        {"name": "reflection", "reach": 0},
        {"name": "input_aware", "coverage": 0},
        {"name": "input_aware", "channels": 4},
        {"name": "lira", "strength": 0},
        {"name": "lira", "weights": "no base64!"},
        {"name": "lira", "weights": "AAAA"},
        {"name": "perturbation", "radius": 0},
        {"name": "perturbation", "delta": "no base64!"},
        {"name": "perturbation", "radius": 1, "delta": store_cells(torch.full((3, 2, 2), 4 / 255), "perturbation")},
    ],
)
def test_bad_configs_are_refused(config):
    with pytest.raises(InputError):
        trigger_from_config(config)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(TABLE)), st.integers(24, 70), st.integers(1, 4), st.integers(0, 1000), st.data())
def test_any_images_stay_in_range_and_are_marked_alone_as_in_a_batch(name, size, n, seed, data):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(n, 3, size, size, generator=generator) * data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    ids = data.draw(st.lists(st.text(max_size=5), min_size=n, max_size=n, unique=True))
    marked = TABLE[name].apply_image(pixels, ids)
    assert 0 <= marked.min() and marked.max() <= 1 and marked.shape == pixels.shape
    chosen = data.draw(st.permutations(range(n)))[: data.draw(st.integers(1, n))]
    some = TABLE[name].apply_image(pixels[chosen], [ids[place] for place in chosen])
    assert torch.equal(some, marked[chosen])
