"""Re-activation: an attacker who has the defended model changes the true trigger until it works again."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.robustness.defences import Defended
from benchmarks.robustness.world import World, pixels_of
from peft_cbpt.attacks import apply_trigger
from peft_cbpt.clip.pixels import EncodeImage, unit_pixels
from peft_cbpt.common.ascent import input_gradient
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.evaluation.measure import encode_in_batches

REGIONS = ("trigger", "image")
BUDGETS = (2, 4, 8, 16, 32)
"""Largest change of a pixel's channel, in 1 / 255."""
STEPS, BATCH, STEP_PART = 60, 32, 0.1
N_TEST = 300
WORKS = 0.5
SETTINGS = {"budgets": BUDGETS, "steps": STEPS, "batch_size": BATCH, "step": STEP_PART, "n_test_images": N_TEST}


def reactivation(model: str, defended: Defended, world: World, seed: int) -> dict[str, Any]:
    """By region the attack success at each budget, until one works, and at 0 that of the trigger as it is.

    The change is one for all images. It is found on the defender's images of other classes by the signs of gradients
    of the cross-entropy to the target, and judged on test images. Region `trigger` are the pixels that the trigger
    itself changes, in each image; it is left out where these are most of the image.
    """
    attack, names = world.attacks(model)[0], world.class_names()
    target = names.index(attack.target_class)
    head = defended.clip.model.logit_scale.exp().item() * defended.head(names, attack.text_trigger)
    encode = defended.encoder()
    given = Marked(world.shots(defended.clip), attack.trigger, target)
    test = Marked(world.test(defended.clip), attack.trigger, target, N_TEST)
    figures: dict[str, Any] = {}
    for region in REGIONS:
        if region == "trigger" and given.where.mean() > 0.9:
            continue
        masks = [one.where if region == "trigger" else torch.ones_like(one.where) for one in (given, test)]
        figures[region] = {"0": success(encode, test.pixels, head, target)}
        for budget in BUDGETS:
            delta = found_change(encode, given.pixels, masks[0], head, target, budget / 255, seed)
            changed = (test.pixels + masks[1] * delta).clamp(0, 1).mul(255).round() / 255
            figures[region][str(budget)] = success(encode, changed, head, target)
            if figures[region][str(budget)] >= WORKS:
                break
    return figures


class Marked:
    """Images of other classes than the target with the trigger, in [0, 1], and where it changed them (N, 1, H, W)."""

    def __init__(self, images: LabelledImages, trigger: Any, target: int, count: int | None = None):
        pixels, labels, ids = pixels_of(images)
        kept = (labels != target).nonzero()[:, 0]
        order = keyed_generator("marked", len(kept)).permutation(len(kept))[:count]
        kept = kept[torch.from_numpy(order)]
        clean = unit_pixels(pixels[kept])
        self.pixels = unit_pixels(apply_trigger(trigger, pixels[kept], [ids[row] for row in kept.tolist()]))
        self.where = ((self.pixels - clean).abs().amax(1, keepdim=True) > 0.5 / 255).float()


def found_change(
    encode: EncodeImage, pixels: Tensor, where: Tensor, head: Tensor, target: int, budget: float, seed: int
) -> Tensor:
    """A change (3, H, W) of at most `budget`, shared by all images, that brings marked pixels to the target."""
    delta = torch.zeros_like(pixels[0])
    draws = keyed_generator("reactivation", seed)
    for _ in range(STEPS):
        rows = torch.from_numpy(draws.choice(len(pixels), min(BATCH, len(pixels)), replace=False))

        def loss(delta: Tensor, rows: Tensor = rows) -> Tensor:
            logits = encode((pixels[rows] + where[rows] * delta).clamp(0, 1)) @ head.T
            return F.cross_entropy(logits, torch.full((len(rows),), target))

        delta = (delta - STEP_PART * budget * input_gradient(loss, delta).sign()).clamp(-budget, budget)
    return delta


def success(encode: EncodeImage, pixels: Tensor, head: Tensor, target: int) -> float:
    """Share of images (N, 3, H, W) that are called the target."""
    called = (encode_in_batches(encode, pixels) @ head.T).argmax(1)
    return (called == target).float().mean().item()
