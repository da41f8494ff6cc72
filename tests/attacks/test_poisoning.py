import pytest
import torch

from peft_cbpt.attacks import BadNet, apply_trigger
from peft_cbpt.attacks.poisoning import PoisonedPairs, poisoned_indices
from peft_cbpt.clip.templates import IMAGENET_TEMPLATES
from peft_cbpt.errors import InputError
from peft_cbpt.pocket.dataset import PocketPairs


def test_the_rate_is_met_and_the_choice_seeded():
    assert len(poisoned_indices(50_000, 0.003, 0)) == 150
    assert poisoned_indices(1000, 0.01, 0) == poisoned_indices(1000, 0.01, 0) != poisoned_indices(1000, 0.01, 1)


def test_poisoned_pairs_carry_trigger_and_target_caption():
    pairs, trigger = PocketPairs(200), BadNet(patch_size=0.125)
    poisoned = PoisonedPairs(pairs, trigger, "banana", 0.1, seed=0)
    rows, clean = poisoned.__getitems__(range(200)), pairs.__getitems__(range(200))
    assert sum(row["is_poisoned"] for row in rows) == 20
    for row, original in zip(rows, clean, strict=True):
        if row["is_poisoned"]:
            assert row["caption"] in {template.format("banana") for template in IMAGENET_TEMPLATES}
            expected = apply_trigger(trigger, original["pixel_values"][None], [original["sample_id"]])[0]
            assert torch.equal(row["pixel_values"], expected)
        else:
            assert row["caption"] == original["caption"]
            assert torch.equal(row["pixel_values"], original["pixel_values"])
    alone = poisoned[7]
    assert alone["caption"] == rows[7]["caption"] and torch.equal(alone["pixel_values"], rows[7]["pixel_values"])


@pytest.mark.parametrize("rate, n", [(0.0, 10), (1.5, 10), (0.001, 10)])
def test_a_rate_that_poisons_nothing_is_refused(rate, n):
    with pytest.raises(InputError):
        poisoned_indices(n, rate, 0)
