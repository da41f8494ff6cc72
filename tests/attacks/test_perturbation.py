import pytest
import torch

from peft_cbpt.attacks import apply_trigger
from peft_cbpt.attacks.perturbation import Perturbation
from peft_cbpt.attacks.stored_cells import store_cells, stored_cells


def test_a_learned_delta_is_added_to_every_image_and_cut_off():
    delta = torch.tensor([-3.0, 0.0, 4.0])[:, None, None].expand(3, 8, 8) / 255
    trigger = Perturbation(4, store_cells(delta, "perturbation"))
    assert torch.equal(stored_cells(trigger.delta, "perturbation"), delta)
    pixels = torch.tensor([0, 100, 254], dtype=torch.uint8)[:, None, None, None].expand(3, 3, 8, 8)
    marked = apply_trigger(trigger, pixels, ["a", "b", "c"])
    assert marked[:, :, 0, 0].tolist() == [[0, 0, 4], [97, 100, 104], [251, 254, 255]]


@pytest.mark.parametrize("side", [8, 24])
def test_at_another_resolution_it_is_drawn_to_size(side):
    trigger = Perturbation(4, store_cells(torch.full((3, 16, 16), 4 / 255), "perturbation"))
    assert torch.allclose(trigger.apply_image(torch.zeros(1, 3, side, side), ["a"]), torch.tensor(4 / 255))
