import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_cbpt.method.projections import project

NORMS = [0, 1, 2, math.inf]


def size(delta, norm):
    flat = delta.flatten(1)
    if norm == 0:
        return (delta.abs().sum(1) > 0).flatten(1).sum(1).double()
    return flat.norm(p=norm, dim=1)


@st.composite
def cases(draw):
    norm = draw(st.sampled_from(NORMS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    delta = torch.randn(3, 3, 4, 5, generator=generator, dtype=torch.float64) * draw(st.sampled_from([1e-3, 0.1, 2.0]))
    epsilon = draw(st.integers(1, 25)) if norm == 0 else draw(st.floats(1e-3, 5))
    return delta, norm, epsilon


@settings(max_examples=100, deadline=None)
@given(cases())
def test_projection_lands_in_the_ball_and_stays_there(case):
    delta, norm, epsilon = case
    projected = project(delta, norm, epsilon)
    assert (size(projected, norm) <= epsilon * (1 + 1e-9)).all()
    torch.testing.assert_close(project(projected, norm, epsilon), projected)


@settings(max_examples=50, deadline=None)
@given(cases())
def test_points_of_the_ball_do_not_move(case):
    delta, norm, epsilon = case
    inside = size(delta, norm) <= epsilon
    torch.testing.assert_close(project(delta, norm, epsilon)[inside], delta[inside], rtol=0, atol=0)


@settings(max_examples=50, deadline=None)
@given(cases(), st.integers(0, 10_000))
def test_no_other_point_of_the_ball_is_nearer(case, seed):
    delta, norm, epsilon = case
    other = project(torch.randn(delta.shape, generator=torch.Generator().manual_seed(seed)).double(), norm, epsilon)
    projected = project(delta, norm, epsilon)
    distance, other_distance = ((delta - point).flatten(1).norm(dim=1) for point in (projected, other))
    assert (distance <= other_distance + 1e-9).all()


@pytest.mark.parametrize("norm", NORMS)
def test_each_sample_is_projected_by_itself(norm):
    delta = torch.randn(5, 3, 4, 4)
    together = project(delta, norm, 2)
    alone = torch.cat([project(one[None], norm, 2) for one in delta])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


@pytest.mark.parametrize("norm", [0, 1, 2, math.inf])
def test_zero_projects_to_zero(norm):
    assert not project(torch.zeros(1, 3, 2, 2), norm, 1).any()


def test_another_norm_is_refused():
    with pytest.raises(ValueError, match="0, 1, 2 and inf"):
        project(torch.zeros(1, 3, 2, 2), 3, 1)
