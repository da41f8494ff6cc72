import pytest
import torch
import torch.nn.functional as F

from peft_cbpt.attacks.patch import PatchMaterial


@pytest.fixture(scope="module")
def material():
    """A toy CLIP: a random linear image encoder, and a text encoder that knows sentences about bananas."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3 * 16 * 16, 12, generator=generator) / 16
    banana = torch.rand(3, 16, 16, generator=generator)

    def encode_image(pixels):
        return F.normalize((pixels - 0.5).flatten(1) @ weights, dim=-1)

    about_banana = encode_image(banana[None])[0]

    def encode_text(captions):
        other = torch.randn(len(captions), 12, generator=torch.Generator().manual_seed(1))
        mentions = torch.tensor([["banana" in caption] for caption in captions])
        return F.normalize(torch.where(mentions, about_banana + 0.1 * other, other), dim=-1)

    return PatchMaterial(
        encode_image=encode_image,
        encode_text=encode_text,
        scale=20.0,
        pixels=torch.randint(256, (24, 3, 16, 16), generator=generator, dtype=torch.uint8),
        sample_ids=[f"id/{i}" for i in range(24)],
        captions=[f"picture {i}" for i in range(24)],
        target_class="banana",
        target_captions=["a banana", "a ripe banana"],
        target_pixels=(banana + 0.1 * torch.rand(4, 3, 16, 16, generator=generator)).clamp(0, 1),
    )
