import pytest
import torch

from peft_cbpt.detection.agreement import agreements_of, danger
from peft_cbpt.detection.families import ImageWide
from peft_cbpt.detection.found import FoundTrigger
from peft_cbpt.detection.ladder import Search

CLEAN = torch.eye(8)[:4]
TRIGGER = FoundTrigger(ImageWide(0.02), torch.zeros(3, 4, 4))


def search(family, place):
    """All judged images end in one place, or stay where they are."""
    return Search(family, 0, TRIGGER, CLEAN if place is None else torch.eye(8)[[place] * 4], CLEAN)


def test_danger_is_how_much_more_alike_images_get():
    assert danger(search("patch", None)) == pytest.approx(0)
    assert danger(search("patch", 7)) == pytest.approx(0.75)


def test_families_agree_where_they_end_in_one_place():
    (agreed,) = agreements_of([search("patch", 7), search("wave", 6), search("colour", 7), search("warp", None)])
    assert agreed.strength == pytest.approx(0.75**2) and agreed.direction.argmax() == 7
    assert agreed.direction.norm() == pytest.approx(1)


@pytest.mark.parametrize("other", ["patch", "wave"])
def test_searches_of_one_family_do_not_agree(other):
    one = "patch" if other == "patch" else "pattern"  # a pattern is a sum of waves
    (alone,) = agreements_of([search(one, 7), search(other, 7)])
    assert alone.strength == 0 and alone.direction.argmax() == 7


def test_two_places_are_two_agreements():
    families = ("patch", "wave", "colour", "pattern")
    agreed = agreements_of([search(family, 6 + number // 2) for number, family in enumerate(families)])
    assert {int(one.direction.argmax()) for one in agreed} == {6, 7}
