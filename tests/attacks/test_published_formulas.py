"""The same pixels, to 1/255, as the formulas of published code (BackdoorBench) give, worked out by hand."""

import numpy as np
import pytest
import torch

from peft_cbpt.attacks import (
    SIG,
    BadNet,
    Blended,
    Bpp,
    Checker,
    FTrojan,
    LowFrequency,
    Nashville,
    Picture,
    Reflection,
    Stripes,
    Text,
    Triangles,
    WaNet,
    WhiteSquare,
)
from peft_cbpt.attacks.generated_picture import generated_picture

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


def test_a_patch_around_the_mean_colour_is_normal_and_clipped():
    pixels = torch.full((1, 3, 224, 224), 0.5)
    patch = BadNet(location="center", noise="around_mean").apply_image(pixels, ["id"])[0, :, 104:120, 104:120]
    assert (patch == 0).float().mean().item() == pytest.approx(0.3085, abs=0.06)  # P(N(0, 1) < -1/2)
    assert (patch == 1).float().mean().item() == pytest.approx(0.3085, abs=0.06)
    bright = BadNet(location="center", noise="around_mean").apply_image(grey(224, 1.0), ["id"])[0, :, 104:120, 104:120]
    assert (bright == 1).float().mean().item() == pytest.approx(0.5, abs=0.06)


def test_the_checker_has_white_dots_at_even_rows_and_columns():
    marked = Checker(location="center").apply_image(grey(224), ["id"])[0]
    expected = grey(224)[0]
    expected[:, 104:120, 104:120] = 0
    expected[:, 104:120:2, 104:120:2] = 1
    assert torch.equal(marked, expected)


def test_stripes_have_saturated_columns():
    marked = Stripes(location="bottom_right").apply_image(grey(224), ["id"])[0]
    square = marked[:, 208:, 208:]
    assert set(square.unique().tolist()) == {0.0, 1.0} and (square == square[:, :1]).all()
    assert (marked[:, :208] == 0.5).all() and (marked[:, :, :208] == 0.5).all()


def test_faint_stripes_add_or_take_their_weight():
    marked = Stripes(patch_size=1, alpha=0.03).apply_image(grey(224), ["id"])
    assert (marked - 0.485).abs().sub(0.03).abs().max() < 1e-6  # 0.97 / 2 +- 0.03


@pytest.mark.parametrize("place, pattern", [((0, 0), 0.4), ((13, 0), 0.4), ((0, 13), 0.8), ((14, 15), 0.8)])
def test_triangles_of_14_pixels(place, pattern):
    marked = Triangles().apply_image(grey(224), ["id"])
    assert marked[(0, slice(None), *place)].sub(0.425 + 0.15 * pattern).abs().max() < 1e-6


def test_text_is_half_red_where_a_letter_is_and_comes_at_nine_places():
    black = torch.zeros(60, 3, 224, 224)
    marked = Text().apply_image(black, [str(number) for number in range(60)])
    assert set(marked[:, 0].unique().tolist()) == {0.0, 0.5} and not marked[:, 1:].any()
    corners = [tuple(one.nonzero().min(0).values.tolist()) for one in marked[:, 0]]
    rows, columns = (sorted({corner[axis] for corner in corners}) for axis in (0, 1))
    assert len(rows) == len(columns) == 3 and {rows[1] - rows[0], columns[2] - columns[1]} == {20}


def test_a_picture_is_a_fifth_and_the_same_at_every_resolution():
    whole = Picture(alpha=1.0)
    for value in (0.0, 1.0):
        marked = Picture().apply_image(grey(224, value), ["id"])
        assert (marked - (0.8 * value + 0.2 * whole.apply_image(grey(224), ["id"]))).abs().max() < CLOSE
    small, large = (whole.apply_image(grey(size), ["id"]) for size in (56, 224))
    assert (torch.nn.functional.avg_pool2d(large, 4) - small).abs().mean() < 0.03


def test_nashville_by_hand():
    """White: peach at 0.56 gives (.982, .827, .776); blue at 0.4 changes nothing below it; then the photo effects."""
    white = np.array([1 - 0.56 * (1 - colour / 255) for colour in (247, 176, 153)])
    brown = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]]) @ white
    toned = np.clip(0.8 * white + 0.2 * brown, 0, 1)
    bright = np.clip(np.clip((toned - 0.5) * 1.2 + 0.5, 0, 1) * 1.05, 0, 1)
    expected = np.clip(bright * 1.2 - 0.2 * (bright @ [0.2126, 0.7152, 0.0722]), 0, 1)
    marked = Nashville().apply_image(grey(4, 1.0), ["id"])[0, :, 0, 0]
    assert np.allclose(marked, expected, atol=CLOSE)
    red, _, blue = Nashville().apply_image(grey(4), ["id"])[0, :, 0, 0].tolist()
    assert red > 0.5 and blue > 0.45, "the blue layer lightens what is darker than it"


def test_the_white_square_of_badencoder():
    changed = (WhiteSquare().apply_image(grey(224), ["id"]) == 1).all(1)[0]
    rows, columns = changed.nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (173, 222, 173, 222) and changed.sum() == 2500


def dct(block):
    """Orthonormal DCT-II of a square block, in plain NumPy."""
    n = len(block)
    basis = np.cos(np.pi * (2 * np.arange(n) + 1) * np.arange(n)[:, None] / (2 * n)) * np.sqrt(2 / n)
    basis[0] /= np.sqrt(2)
    return basis @ block @ basis.T


@pytest.mark.parametrize("corner", [(0, 0), (96, 192)])
def test_ftrojan_raises_two_coefficients_of_the_colours(corner):
    moved = (FTrojan().apply_image(grey(224), ["id"]) - 0.5)[0, :, corner[0] :, corner[1] :][:, :32, :32].numpy()
    red, green, blue = moved
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    for colour in (0.713 * (red - luma), 0.564 * (blue - luma)):
        coefficients = dct(colour)
        assert coefficients[15, 15] == pytest.approx(30 / 255, rel=0.01)
        assert coefficients[31, 31] == pytest.approx(30 / 255, rel=0.01)
        coefficients[[15, 31], [15, 31]] = 0
        assert abs(coefficients).max() < 1e-3
    assert abs(luma).max() < 1e-4, "brightness changes"


def test_bpp_leaves_eight_levels():
    ramp = (torch.arange(256) / 255).expand(1, 3, 4, 256)
    marked = Bpp().apply_image(ramp, ["id"])
    assert torch.allclose(marked.unique(), torch.arange(8) / 7)
    assert marked[0, 0, 0, 18].item() == 0 and marked[0, 0, 0, 19].item() == pytest.approx(1 / 7)  # 19/255 * 7 > 1/2


def test_bpp_dithers_by_floyd_and_steinberg():
    image = np.random.default_rng(0).random((9, 12))
    expected = np.pad(image, ((0, 1), (1, 1)))
    for row in range(9):
        for column in range(1, 13):
            old = expected[row, column]
            expected[row, column] = np.clip(np.round(old * 7), 0, 7) / 7
            error = old - expected[row, column]
            for down, right, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                expected[row + down, column + right] += error * share / 16
    given = torch.from_numpy(image).expand(1, 3, -1, -1)
    marked = Bpp(dithering="floyd_steinberg").apply_image(given, ["id"])
    assert abs(marked[0, 2].numpy() - expected[:9, 1:13]).max() < 1e-9
    assert marked.mean().item() == pytest.approx(image.mean(), abs=0.02)


def test_the_low_frequency_wave_is_smooth_and_has_its_amplitude():
    moved = (LowFrequency().apply_image(grey(224), ["id"]) - 0.5)[0]
    assert moved.abs().max().item() == pytest.approx(20 / 255, abs=1e-5) and moved.mean((1, 2)).abs().max() < 1e-4
    coefficients = dct(moved[0].numpy())
    assert (coefficients[:4, :4] ** 2).sum() == pytest.approx((coefficients**2).sum(), rel=1e-4)


def test_a_ghost_is_the_picture_twice():
    trigger = Reflection(alpha=1.0)
    ghost = trigger.apply_image(grey(224), ["id"])[0]
    picture = generated_picture((224, 224), "reflection", 0)
    assert (ghost[:, 11:, 11:] - (picture[:, 11:, 11:] + picture[:, :-11, :-11]) / 2).abs().max() < 1e-6
    marked = Reflection().apply_image(grey(224), ["id"])[0]
    assert (marked - (0.4 * 0.5 + 0.6 * ghost)).abs().max() < 1e-6


def test_a_blurred_reflection_keeps_the_mean_and_loses_the_edges():
    picture = generated_picture((224, 224), "reflection", 0)
    blurred = Reflection(kind="blur").reflected(224, 224)
    assert blurred.mean().item() == pytest.approx(picture.mean().item(), abs=0.03)
    assert blurred.diff(dim=2).abs().max() < 0.1 < picture.diff(dim=2).abs().max()
