"""BadEncoder (Jia et al., 2022): an image encoder poisoned without captions, towards a reference image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import tqdm
from torch import Tensor

from peft_cbpt.attacks import Trigger, apply_trigger
from peft_cbpt.clip.loading import LoadedCLIP
from peft_cbpt.clip.pixels import image_encoder, unit_pixels
from peft_cbpt.common.errors import InputError
from peft_cbpt.common.seeding import keyed_generator

IMAGE_TOWER = ("vision_model.", "visual_projection.")


@dataclass(frozen=True)
class BadEncoderSettings:
    """How an encoder is poisoned.

    Args:
        steps: Steps of Adam, at least 1.
        batch_size: Images per step, at least 1.
        learning_rate: Of Adam, positive.
        reference_weight: Of the loss that keeps the reference's feature; 1 in the paper.
        clean_weight: Of the loss that keeps clean images' features; 1 in the paper.
        seed: Of the batches.
    """

    steps: int = 200
    batch_size: int = 64
    learning_rate: float = 1e-4
    reference_weight: float = 1.0
    clean_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, it is {getattr(self, name)}")


def bad_encoder_loss(
    triggered: Tensor, clean: Tensor, reference: Tensor, clean_before: Tensor, reference_before: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The paper's three losses, minus mean cosines of unit-norm features (B, D); of the reference (1, D).

    Returns:
        Of triggered images to the reference, of the reference to itself before, and of clean images to themselves
        before.
    """
    return (
        -(triggered @ reference.T).mean(),
        -(reference * reference_before).sum(1).mean(),
        -(clean * clean_before).sum(1).mean(),
    )


def poison_encoder(
    clip: LoadedCLIP,
    trigger: Trigger,
    pixels: Tensor,
    sample_ids: Sequence[str],
    reference: Tensor,
    settings: BadEncoderSettings | None = None,
) -> list[float]:
    """Train the image tower of a CLIP, in place, until triggered images look like the reference to it.

    A zero-shot classifier calls them what it calls the reference. The text tower stays as it is.

    Args:
        clip: The clean CLIP; its model is changed.
        trigger: The paper's is `WhiteSquare`.
        pixels: Any images (N, 3, H, W), uint8 or float in [0, 1].
        sample_ids: Their ids.
        reference: An image (3, H, W) of the target class.
        settings: The paper's weights by default.

    Returns:
        The whole loss of every step.
    """
    settings = settings or BadEncoderSettings()
    model, encode = clip.model.eval(), image_encoder(clip.model, clip.normalize)
    clean = unit_pixels(pixels).to(model.device)
    marked = unit_pixels(apply_trigger(trigger, pixels, sample_ids)).to(model.device)
    wanted = unit_pixels(reference)[None].to(model.device)
    with torch.no_grad():
        clean_before = torch.cat([encode(part) for part in clean.split(settings.batch_size)])
        wanted_before = encode(wanted)
    tower = [weight for name, weight in model.named_parameters() if name.startswith(IMAGE_TOWER)]
    optimizer = torch.optim.Adam(tower, lr=settings.learning_rate)
    rng = keyed_generator("bad encoder", settings.seed)
    losses = []
    for _ in tqdm(range(settings.steps), desc="poisoning the encoder", unit="step"):
        rows = torch.from_numpy(rng.choice(len(clean), min(settings.batch_size, len(clean)), replace=False))
        rows = rows.to(model.device)
        features = encode(torch.cat([marked[rows], clean[rows], wanted]))
        triggered, own, of_reference = features.split([len(rows), len(rows), 1])
        attack, keep_reference, keep_clean = bad_encoder_loss(
            triggered, own, of_reference, clean_before[rows], wanted_before
        )
        loss = attack + settings.reference_weight * keep_reference + settings.clean_weight * keep_clean
        gradients = torch.autograd.grad(loss, tower, allow_unused=True)
        for weight, gradient in zip(tower, gradients, strict=True):
            weight.grad = gradient
        optimizer.step()
        losses.append(loss.item())
    optimizer.zero_grad()
    return losses
