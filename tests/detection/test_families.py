import pytest
import torch
import torch.nn.functional as F

from peft_cbpt.attacks import SIG, BadNet
from peft_cbpt.clip.pixels import image_encoder
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.detection.families import Colour, ImageWide, Patch, Pattern, Warp, Wave
from peft_cbpt.detection.found import (
    FoundTrigger,
    find_trigger,
    flattened,
    load_triggers,
    save_triggers,
    unflattened,
)
from peft_cbpt.detection.universal import approach, collapse

KINDS = [
    ImageWide(0.05),
    Patch(0.1),
    Patch(0.1, (0.5, 0.0)),
    Patch(0.1, None),
    Pattern(0.1),
    Pattern(0.1, 4, False),
    Wave(0.1),
    Warp(0.05),
    Colour(0.1),
]


@pytest.fixture
def encoder_and_pixels(poisoned_clip, few_shots):
    poisoned_clip.model.requires_grad_(False)
    pixels = torch.stack([few_shots[row]["pixel_values"] for row in range(8)]).float() / 255
    return image_encoder(poisoned_clip.model, poisoned_clip.normalize), pixels


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("side", [(48, 48), (64, 56)])
def test_a_mark_at_full_size_changes_pixels_by_its_size(kind, side):
    coarse = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    pixels = F.interpolate(coarse, side, mode="bilinear")
    mark = kind.at_full_size(kind.draw(side, keyed_generator("draw")), pixels)
    marked = kind.apply(pixels, mark)
    assert marked.shape == pixels.shape and marked.min() >= 0 and marked.max() <= 1
    assert (marked - pixels).square().mean().sqrt().item() == pytest.approx(kind.size, rel=0.45)


@pytest.mark.parametrize("kind", [one for one in KINDS if one.searched], ids=str)
def test_a_step_goes_up_the_gradient_and_stays_within_the_size(kind):
    pixels = F.interpolate(torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3, (48, 48))
    mark = 0.7 * kind.at_full_size(kind.draw((48, 48), keyed_generator("draw")), pixels)
    gradient = torch.randn(mark.shape, generator=torch.Generator().manual_seed(1))
    after = kind.stepped(mark, gradient, pixels, 0.2)
    assert ((after - mark) * gradient).sum() > 0
    for _ in range(20):
        after = kind.stepped(after, gradient, pixels, 1.0)
    if isinstance(kind, Patch):
        assert torch.equal(after, 0.5 * gradient.sign())
    else:
        assert (kind.apply(pixels, after) - pixels).square().mean().sqrt() <= 1.4 * kind.size


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_found_trigger_makes_images_more_alike_and_is_found_again(encoder_and_pixels, kind):
    encode, pixels = encoder_and_pixels
    before = pixels.clone()
    one, other = (find_trigger(encode, pixels, collapse, kind, keyed_generator("find"), 6) for _ in range(2))
    assert torch.equal(one.mark, other.mark) and not one.mark.requires_grad
    start = find_trigger(encode, pixels, collapse, kind, keyed_generator("find"), 1)
    reached = [collapse(encode(trigger(pixels))).item() for trigger in (start, one)]
    assert reached[1] > reached[0] or (not kind.searched and reached[1] == reached[0])
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("kind", [ImageWide(0.02), Pattern(0.12), Patch(0.1)], ids=str)
def test_a_found_trigger_comes_near_to_a_name_within_its_size(encoder_and_pixels, kind):
    encode, pixels = encoder_and_pixels
    towards = approach(encode(pixels)[0].detach())
    trigger = find_trigger(encode, pixels, towards, kind, keyed_generator("find"), 12)
    assert towards(encode(trigger(pixels))) > towards(encode(pixels)) + 0.02
    assert (trigger(pixels) - pixels).square().mean().sqrt() <= 1.4 * kind.size


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_triggers_are_kept_as_rows_and_as_files(kind, tmp_path):
    side = (48, 40)
    found = FoundTrigger(kind, kind.draw(side, keyed_generator("draw")))
    row = flattened(found.mark, side)
    assert row.shape == (3 * 48 * 40,) and torch.equal(unflattened(row, kind, side), found.mark)
    save_triggers(tmp_path / "found.safetensors", {"0/3": found}, {"told": [1, None]})
    stored, told = load_triggers(tmp_path / "found.safetensors")
    assert list(stored) == ["0/3"] and stored["0/3"].kind == kind and torch.equal(stored["0/3"].mark, found.mark)
    assert told == {"told": [1, None]}


def test_a_patch_covers_its_square_only_and_can_be_anywhere():
    pixels = torch.rand(5, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    corner, anywhere = Patch(0.1, (1.0, 1.0)), Patch(0.1, None)
    mark = corner.draw((32, 48), keyed_generator("patch"))
    assert mark.shape == (3, 8, 8)  # a quarter of the shorter side
    changed = (corner.apply(pixels, mark) != pixels).any(1)
    assert changed[:, 24:, 40:].all() and changed.sum() == 5 * 64
    places = {tuple(one.nonzero()[0].tolist()) for one in (anywhere.apply(pixels, mark) != pixels).any(1)}
    assert len(places) == 5


def test_sizes_of_attacks_are_those_that_kinds_speak_of():
    pixels = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ids = [str(row) for row in range(8)]
    sizes = [
        (trigger.apply_image(pixels, ids) - pixels).square().mean().sqrt().item() for trigger in (BadNet(0.125), SIG())
    ]
    assert sizes[0] == pytest.approx(Patch(0.05).size, rel=0.1)
    assert sizes[1] == pytest.approx(Wave(0.166).size, rel=0.15)


def test_every_wave_is_another_one(all_searches):
    kind = Wave(0.1, most=3)
    marks = kind.every((12, 40))
    assert len(marks) == 2 * (3 + 3 * 7) and len(Wave(0.1, most=12).every((8, 8))) == 2 * (2 + 2 * 5)
    pixels = torch.full((1, 3, 12, 40), 0.5)
    waves = [kind.apply(pixels, kind.at_full_size(mark, pixels))[0, 0].flatten() - 0.5 for mark in marks]
    alike = F.cosine_similarity(torch.stack(waves)[:, None], torch.stack(waves), dim=2).abs() - torch.eye(len(waves))
    assert alike.max() < 0.999


def test_the_one_wave_of_a_backdoor_is_found_among_all(all_searches):
    """Features follow one wave only, and of all marks that a few random draws make hardly one is near it."""
    secret = Wave(0.1).apply(torch.full((1, 3, 48, 48), 0.5), torch.tensor([5.0, -7.0, 0.25, 0.1]))[0, 0] - 0.5

    def encode(pixels):
        strength = (pixels.mean(1) * secret).sum((1, 2), keepdim=True).flatten(1) / secret.square().sum()
        return F.normalize(torch.cat([strength, pixels.mean((2, 3))], 1), dim=1)

    pixels = 0.5 + 0.1 * torch.rand(6, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    found = find_trigger(encode, pixels, lambda features: features[:, 0].mean(), Wave(0.1), keyed_generator("wave"))
    assert found.mark[:3].tolist() == [5, -7, 0.25]


def test_a_wave_has_the_shape_of_sig():
    grey = torch.full((1, 3, 48, 48), 0.5)
    sig = SIG().apply_image(grey, ["0"])[0] - 0.5
    wave = Wave(0.166).apply(grey, torch.tensor([0.0, 6.0, 0.0, 60 / 255]))[0] - 0.5
    torch.testing.assert_close(sig.norm(), wave.norm(), rtol=1e-3, atol=0)
    assert torch.equal(wave[0], wave[1])
