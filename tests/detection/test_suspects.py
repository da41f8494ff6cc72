import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from peft_cbpt.detection.suspects import (
    REACHED,
    REACHED_BY_PATTERN,
    CleanCosines,
    Suspect,
    clean_cosines,
    reach,
    suspicion,
)

N = 40
LOW = torch.zeros(N)


def clean(n=N, **own):
    """Cosines between 0.6 and 0.7; those of classes in `own`, such as c4=0.3, are different."""
    cosines = torch.linspace(0.6, 0.7, n)
    for name, value in own.items():
        cosines[int(name[1:])] = value
    return CleanCosines(cosines, 0.1, 0.05)


def reached(label, score=REACHED + 0.1):
    scores = torch.linspace(0.1, 0.3, N)
    scores[label] = score
    return scores


def labels(found):
    return [one.label for one in found.suspects]


def test_clean_cosines_are_means_over_a_class_and_over_other_names():
    names = torch.eye(3)
    features = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0.6, 0.8], [0.6, 0, 0.8]])
    cosines = clean_cosines(features, torch.tensor([0, 1, 1, 2]), names)
    torch.testing.assert_close(cosines.own, torch.tensor([1.0, 0.8, 0.8]))
    assert cosines.others == pytest.approx((0.8 + 0.6) / 8)
    others = torch.tensor([0.8, 0.6, 0, 0, 0, 0, 0, 0])
    assert cosines.spread == pytest.approx(others.std(correction=0).item(), abs=1e-6)


def test_reach_is_nought_at_others_names_and_one_at_the_own():
    names = torch.eye(3)
    cosines = CleanCosines(torch.tensor([0.7, 0.8, 0.9]), 0.2, 0.1)
    images = F.normalize(torch.tensor([[0.8, 0.2, 0.5], [0.8, 0.2, -0.5]]), dim=1)
    mean = images.mean(0)
    expected = torch.stack([(mean[0] - 0.2) / 0.6, (mean[1] - 0.2) / 0.6, torch.tensor(-0.2 / 0.6)])
    torch.testing.assert_close(reach(images, names, cosines), expected)


@given(st.integers(3, 40), st.integers(0, 3))
def test_reach_does_not_depend_on_the_number_of_names(n_classes, seed):
    """With the other names at the same distance from everything, from images of these classes to the score."""
    generator = torch.Generator().manual_seed(seed)
    names = torch.eye(64)

    def reach_of_first(n):
        images = F.normalize(names[:n] + 0.3 * names[50], dim=1)
        cosines = clean_cosines(images, torch.arange(n), names[:n])
        triggered = F.normalize(names[0] + 0.3 * names[60] + noise, dim=1)
        return reach(triggered, names[:n], cosines)[0]

    noise = 0.1 * torch.rand(4, 64, generator=generator)
    torch.testing.assert_close(reach_of_first(n_classes), reach_of_first(2))


def test_a_model_that_knows_no_name_reaches_none():
    assert reach(torch.eye(3), torch.eye(3), CleanCosines(torch.full((3,), 0.1), 0.2, 0.1)).eq(0).all()


@pytest.mark.parametrize(("lead", "known"), [(1e-4, False), (0.01, False), (0.3, True)])
def test_a_small_lead_of_the_own_names_does_not_make_scores_explode(lead, known):
    """Images that are hardly nearer to their own names than they scatter around others': nothing can be said."""
    generator = torch.Generator().manual_seed(0)
    names = F.normalize(torch.randn(10, 64, generator=generator), dim=1)
    images = F.normalize(lead * names + torch.randn(10, 64, generator=generator) / 8, dim=1)
    scores = reach(names[:1], names, clean_cosines(images, torch.arange(10), names))
    assert (scores.max() > 0.5) == known and scores.abs().max() < 10


def test_a_name_that_is_reached_is_a_suspect():
    found = suspicion(clean(), [LOW, reached(7, 0.9), reached(7, 0.8), reached(3, REACHED - 0.01)])
    assert found.suspects == [Suspect(7, "collapse", pytest.approx(0.9))] and found.candidates == []


def test_the_class_that_most_searches_find_comes_first():
    assert labels(suspicion(clean(), [reached(2), reached(5), reached(5)])) == [5, 2]


def test_a_name_reached_by_a_pattern_comes_after_those_reached_by_any_trigger():
    found = suspicion(clean(), [reached(7, 0.8)], [reached(3, 0.9), reached(5, 0.9), reached(5, 0.85)])
    assert [(one.label, one.evidence) for one in found.suspects] == [(7, "collapse"), (5, "pattern")]
    assert labels(suspicion(clean(), [reached(7, 0.9)], [reached(7, 0.95)])) == [7]
    assert labels(suspicion(clean(), [reached(7, 0.9)], [reached(5, 0.85)])) == [7], "another trigger came nearer"
    assert labels(suspicion(clean(), [LOW], [reached(3, REACHED_BY_PATTERN - 0.01)])) == []
    assert labels(suspicion(clean(), [LOW], [reached(3, 0.7)], [reached(4, 0.9)])) == [3]
    assert labels(suspicion(clean(), [LOW], [LOW], [reached(4, 0.9)])) == [4]


def test_without_searches_the_lowest_aligned_are_candidates():
    found = suspicion(clean(c7=0.59, c9=0.58), [])
    assert found.suspects == [] and found.candidates == [0, 1, 7, 9]


def test_where_nothing_stands_out_the_classes_nearest_to_it_are_candidates():
    close = suspicion(clean(), [reached(5, 0.6), reached(5, 0.3)], [reached(20, 0.65)], [reached(30, 0.84)])
    assert close.suspects == [] and close.candidates == [0, 1, 20, 30]
    assert suspicion(clean(), [reached(5, 0.6)], [reached(20, 0.4)]).candidates == [0, 1, 5, 20]
    assert suspicion(clean(), [reached(0, 0.6)]).candidates == [0, 1, 2, 3], "a class is named once"


def test_two_classes_are_enough_to_search():
    assert suspicion(clean(n=2), [torch.tensor([0.1, 0.2])]).candidates == [0, 1]
