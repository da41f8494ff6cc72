"""The same pixels, to 1/255, as the formulas of published code (BackdoorBench) give, worked out by hand."""

import numpy as np
import pytest
import torch

from peft_cbpt.attacks import SIG, BadNet, Blended, WaNet

CLOSE = 1 / 255


def grey(size, value=0.5):
    return torch.full((1, 3, size, size), value)


@pytest.mark.parametrize(
    "column, expected",
    [
        (0, 0.5),  # sin 0
        (7, 0.5 + 60 / 255 * 0.92388),  # sin(2 pi 6 * 7 / 224) = sin(3 pi / 8)
        (28, 0.5 - 60 / 255),  # sin(3 pi / 2)
        (14, 0.5 + 60 / 255 * 0.70711),  # sin(3 pi / 4)
    ],
)
def test_sig_adds_a_sine_along_the_columns(column, expected):
    marked = SIG().apply_image(grey(224), ["id"])
    assert marked[0, :, :, column].sub(expected).abs().max() < CLOSE


def test_sig_is_clipped():
    marked = SIG().apply_image(grey(224, 1.0), ["id"])
    assert marked.max() == 1 and marked[0, 0, 0, 28].item() == pytest.approx(1 - 60 / 255, abs=CLOSE)


def test_blended_is_a_fifth_of_the_noise_and_four_fifths_of_the_image():
    noise = Blended(alpha=1.0).apply_image(grey(224), ["id"])
    for value, image_part in ((0.5, 0.4), (1.0, 0.8), (0.25, 0.2)):
        marked = Blended(alpha=0.2).apply_image(grey(224, value), ["id"])
        assert (marked - (image_part + 0.2 * noise)).abs().max() < CLOSE
    assert noise.mean().item() == pytest.approx(0.5, abs=0.01)  # uniform: mean 1/2, deviation 1/sqrt(12)
    assert noise.std().item() == pytest.approx(0.2887, abs=0.01)


def test_badnet_is_a_16_pixel_patch_at_the_bottom_right_of_224():
    changed = (BadNet().apply_image(grey(224), ["id"]) != grey(224)).any(1)[0]
    rows, columns = changed.nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (208, 223, 208, 223)


def test_badnet_replaces_what_is_under_its_patch_by_the_same_16_by_16_pattern():
    black, white = (BadNet().apply_image(grey(224, value), ["id"])[0, :, 208:, 208:] for value in (0.0, 1.0))
    assert torch.equal(black, white)
    twice = BadNet(patch_size=32 / 224).apply_image(grey(224), ["id"])[0, :, 192:, 192:]
    assert (twice - black.repeat_interleave(2, 1).repeat_interleave(2, 2)).abs().max() < CLOSE
    assert black.std().item() == pytest.approx(0.2887, abs=0.02)  # uniform in [0, 1]


@pytest.mark.parametrize("strength", [0.5, 1.0, 4.0])
def test_wanet_samples_the_grid_of_the_published_code(strength):
    """With as many control points as pixels nothing is interpolated but the image: all of it in plain NumPy.

    BackdoorBench: grid = clamp(identity + s * noise / H, -1, 1), read bilinearly with aligned corners; noise is
    uniform in [-1, 1], over its mean absolute value.
    """
    size = 12
    trigger = WaNet(grid_size=size, strength=strength, seed=3)
    image = np.random.default_rng(0).random((size, size)).astype(np.float32)
    noise = trigger.control_points().numpy()  # [0] moves along x, [1] along y
    assert abs(noise).mean() == pytest.approx(1, abs=1e-5)
    expected = np.empty_like(image)
    for row in range(size):
        for column in range(size):
            x = np.clip(-1 + 2 * column / (size - 1) + strength * noise[0, row, column] / size, -1, 1)
            y = np.clip(-1 + 2 * row / (size - 1) + strength * noise[1, row, column] / size, -1, 1)
            at_x, at_y = (x + 1) / 2 * (size - 1), (y + 1) / 2 * (size - 1)
            left, top = min(int(at_x), size - 2), min(int(at_y), size - 2)
            dx, dy = at_x - left, at_y - top
            expected[row, column] = (
                (1 - dx) * (1 - dy) * image[top, left]
                + dx * (1 - dy) * image[top, left + 1]
                + (1 - dx) * dy * image[top + 1, left]
                + dx * dy * image[top + 1, left + 1]
            )
    marked = trigger.apply_image(torch.from_numpy(image).expand(1, 3, -1, -1), ["id"])
    assert abs(marked[0, 1].numpy() - expected).max() < 1e-4


def cubic(distance):
    """The kernel of bicubic enlargement, a = -0.75."""
    x = abs(distance)
    if x <= 1:
        return 1.25 * x**3 - 2.25 * x**2 + 1
    return -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3 if x < 2 else 0.0


def enlarged(points, size):
    """Control points (k, k) enlarged bicubically with aligned corners, the border repeated."""
    k = len(points)
    weights = np.zeros((size, k))
    for row in range(size):
        place = row * (k - 1) / (size - 1)
        for tap in range(int(place) - 1, int(place) + 3):
            weights[row, min(max(tap, 0), k - 1)] += cubic(place - tap)
    return weights @ points @ weights.T


def test_wanet_enlarges_its_control_points_bicubically_with_aligned_corners():
    """On a ramp along x the sampled value is the place itself, so that the warp can be read off."""
    size, trigger = 48, WaNet(grid_size=4, strength=2.0, seed=1)
    ramp = torch.linspace(0, 1, size).expand(1, 3, size, size)
    moved = (trigger.apply_image(ramp, ["id"]) - ramp)[0, 0].numpy() * 2  # in units of the sampling grid
    expected = 2.0 / size * enlarged(trigger.control_points()[0].numpy(), size)
    assert abs(moved - expected)[:, 6:-6].max() < 1e-4


def test_wanet_at_224_moves_by_a_quarter_of_a_pixel():
    """s = 0.5: a control point of size 1 moves by 0.5 / 224 of half the image, which is 0.25 pixels."""
    ramp = (torch.arange(224) / 223).expand(1, 3, 224, 224)
    inside = (WaNet().apply_image(ramp, ["id"]) - ramp)[0, 0, 10:-10, 10:-10] * 223  # movement along x in pixels
    assert 0.05 < inside.abs().mean() < 0.5
