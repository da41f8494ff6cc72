import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from peft_cbpt.purification.suspects import (
    Suspect,
    collapsed_class,
    misaligned_class,
    nearest_names,
    robust_z,
    suspicion,
    text_alignment,
)

ORDINARY = torch.linspace(0.6, 0.7, 11)


def alignment_with(label, value):
    alignment = ORDINARY.clone()
    alignment[label] = value
    return alignment


def cosines_with(label, value):
    cosines = torch.full((11,), 0.3)
    cosines[label] = value
    return cosines


def test_alignment_is_the_mean_cosine_of_a_class_to_its_own_name():
    names = torch.eye(3)
    features = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0.6, 0.8], [0.6, 0, 0.8]])
    alignment = text_alignment(features, torch.tensor([0, 1, 1, 2]), names)
    torch.testing.assert_close(alignment, torch.tensor([1.0, 0.8, 0.8]))


@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=30), st.floats(0.5, 3), st.floats(-1, 1))
def test_robust_z_is_blind_to_shift_and_scale(values, scale, shift):
    z = robust_z(torch.tensor(values, dtype=torch.float64))
    moved = robust_z(torch.tensor(values, dtype=torch.float64) * scale + shift)
    if (torch.tensor(values, dtype=torch.float64).diff().abs() > 1e-3).all():
        torch.testing.assert_close(moved, z, rtol=1e-6, atol=1e-6)


def test_equal_values_are_no_outliers():
    assert robust_z(torch.ones(5)).eq(0).all()


def test_only_an_outlier_downwards_is_misaligned():
    assert misaligned_class(alignment_with(4, 0.3), -3.5).label == 4
    assert misaligned_class(alignment_with(4, 0.99), -3.5) is None
    assert misaligned_class(ORDINARY, -2.5) is None


def test_a_name_stands_out_by_its_ratio_to_the_next():
    assert collapsed_class(cosines_with(7, 0.45)) == Suspect(7, "collapse", pytest.approx(1.5))
    assert collapsed_class(cosines_with(7, 0.35)) is None
    assert collapsed_class(torch.tensor([-0.1, -0.9])) is None
    assert collapsed_class(torch.tensor([0.9])) is None


def test_nearest_names_are_those_of_the_mean_image():
    features = F.normalize(torch.tensor([[1.0, 0.1, 0], [1.0, -0.1, 0]]), dim=1)
    torch.testing.assert_close(nearest_names(features, torch.eye(3)), torch.tensor([1.0, 0, 0]))


def test_the_class_that_most_searches_find_comes_first():
    found = suspicion(ORDINARY, [cosines_with(2, 0.6), cosines_with(5, 0.5), cosines_with(5, 0.6)])
    assert [one.label for one in found.suspects] == [5, 2] and found.candidates == []


@pytest.mark.parametrize(("value", "other", "expected"), [(0.53, 10, [10, 0]), (0.53, 1, [1]), (0.35, 1, [1, 0])])
def test_a_little_odd_a_class_is_suspected_unless_a_better_one_is(value, other, expected):
    """Class 10 is nearest to its name, so that the collapse alone speaks against it; class 1 is far from its own."""
    odd = alignment_with(0, value)
    odd[1] = 0.6
    assert [one.label for one in suspicion(odd, [cosines_with(5, 0.3)]).suspects] == [0]
    assert [one.label for one in suspicion(odd, [cosines_with(other, 0.6)]).suspects] == expected


def test_where_nothing_stands_out_the_nearest_are_candidates():
    found = suspicion(ORDINARY, [cosines_with(5, 0.35)])
    assert found.suspects == [] and {0, 1, 2, 5} <= set(found.candidates) and len(found.candidates) < 11
