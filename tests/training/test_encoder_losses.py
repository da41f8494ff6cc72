import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn

from peft_cbpt.training.encoder_losses import moved, update_shares

FEATURES = F.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), dim=1)


def test_moved_is_one_less_the_cosine():
    assert moved(FEATURES, FEATURES).item() == pytest.approx(0, abs=1e-6)
    assert moved(-FEATURES, FEATURES).item() == pytest.approx(2)


def test_the_share_of_an_update_is_that_of_the_first_images_in_every_layer():
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4 * 9, 5))
    model = get_peft_model(tower, LoraConfig(r=2, lora_alpha=2, target_modules=["0", "2"], init_lora_weights=False))
    images = torch.rand(5, 3, 4, 4)
    with update_shares(model, "default", 2) as shares:
        model(images)
    conv, linear = tower[0], tower[2]
    seen = images[:2]
    whole, update = conv.base_layer(seen), conv.lora_B["default"](conv.lora_A["default"](seen))
    torch.testing.assert_close(shares[0], update.square().mean() / whole.square().mean())
    seen = (whole + update).flatten(1)
    whole, update = linear.base_layer(seen), linear.lora_B["default"](linear.lora_A["default"](seen))
    torch.testing.assert_close(shares[1], update.square().mean() / whole.square().mean())
    sum(shares).backward()
    assert all(one.grad is not None for name, one in model.named_parameters() if "lora_" in name)
    model(images)
    assert len(shares) == 2
    with model.disable_adapter(), update_shares(model, "default", 2) as shares:
        model(images)
    assert shares == []
