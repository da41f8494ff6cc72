import pytest
import torch
import torch.nn.functional as F

from peft_cbpt.detection.universal import approach, collapse


def unit(rows):
    return F.normalize(torch.randn(rows, 5, generator=torch.Generator().manual_seed(0)), dim=1)


def test_collapse_is_the_mean_cosine_of_all_pairs():
    features = unit(7)
    torch.testing.assert_close(collapse(features), (features @ features.T).mean())
    assert collapse(features[:1].expand(4, -1)).item() == pytest.approx(1)


def test_approach_is_the_mean_cosine_to_a_name():
    features = unit(7)
    assert approach(features[2])(features[2:3]).item() == pytest.approx(1)
    torch.testing.assert_close(approach(features[2])(features), (features @ features[2]).mean())
