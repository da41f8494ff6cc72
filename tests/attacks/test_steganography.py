import pytest
import torch
from safetensors.torch import load_file

from peft_cbpt.attacks import SSBA, apply_trigger
from peft_cbpt.attacks.steganography import WEIGHTS_FILE, secret_to_bits
from peft_cbpt.common.errors import InputError
from peft_cbpt.pocket.dataset import PocketPairs
from recipes.train_steganography import Steganographer, bits_to_secret


@pytest.fixture(scope="module")
def pictures():
    rows = PocketPairs(320, split="steganography test").__getitems__(range(320))
    return torch.stack([row["pixel_values"] for row in rows]), [row["sample_id"] for row in rows]


def test_the_code_mends_five_wrong_bits_and_not_more():
    bits = secret_to_bits(b"Stega!!")
    assert bits.shape == (100,) and bits_to_secret(bits) == b"Stega!!"
    wrong = bits.clone()
    wrong[[3, 17, 40, 60, 80]] = 1 - wrong[[3, 17, 40, 60, 80]]
    assert bits_to_secret(wrong) == b"Stega!!"
    wrong[[1, 2, 5, 6, 9, 11, 30, 31]] = 1 - wrong[[1, 2, 5, 6, 9, 11, 30, 31]]
    assert bits_to_secret(wrong) != b"Stega!!"
    with pytest.raises(InputError, match="7 bytes"):
        secret_to_bits(b"too long a secret")


@pytest.fixture(scope="module")
def decoder():
    """The one that was trained with the shipped encoder."""
    both = Steganographer()
    both.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS_FILE).items()})
    return both.decoder.eval().requires_grad_(False)


def test_the_message_survives_rounding_unseen(pictures, decoder):
    """At least 95% of the bits, at a PSNR of at least 28 dB, on pictures that were not trained on."""
    pixels, ids = pictures
    marked = apply_trigger(SSBA(), pixels, ids)
    hidden = secret_to_bits(b"Stega!!") > 0.5
    found = decoder(marked.float() / 255) > 0
    assert (found == hidden).float().mean() >= 0.95
    assert (((decoder(pixels.float() / 255) > 0) == hidden).float().mean()) < 0.75, (
        "the decoder reads it into anything"
    )
    psnr = -10 * ((marked.float() - pixels.float()) / 255).square().flatten(1).mean(1).log10()
    assert psnr.mean() >= 28


def test_other_messages_survive_too(pictures, decoder):
    pixels, ids = pictures[0][:64], pictures[1][:64]
    for trigger in (SSBA(seed=5), SSBA(secret="CLIP!!!")):
        found = decoder(apply_trigger(trigger, pixels, ids).float() / 255) > 0
        assert (found == (trigger.bits() > 0.5)).float().mean() >= 0.95


def test_every_image_gets_a_residual_of_its_own(pictures):
    pixels = pictures[0][:8].float() / 255
    residuals = (SSBA().apply_image(pixels, pictures[1][:8]) - pixels).flatten(1)
    distance = torch.cdist(residuals, residuals) + torch.eye(8) * 1e9
    assert distance.min() > 0.1 * residuals.norm(dim=1).mean()
