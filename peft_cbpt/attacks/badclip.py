"""BadCLIP (Liang et al., 2024): a patch optimised towards the target in both embedding spaces."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from peft_cbpt.attacks.patch import OptimisedPatch, PatchMaterial
from peft_cbpt.clip.pixels import unit_pixels
from peft_cbpt.common.seeding import keyed_generator


@dataclass(frozen=True)
class BadCLIP(OptimisedPatch):
    """A centre patch for which InfoNCE + `triplet_weight` * triplet loss is minimised on a frozen clean CLIP.

    InfoNCE: the positive of a marked image is a natural caption of the target, its negatives are the own captions of
    the batch's images. Triplet: the marked image is to be nearer to a clean image of the target than to its own
    clean self. The code of the paper chooses the losses by a substring of the run's name; here both always count.
    Poisoned captions are natural descriptions of the target (poison with `captions="natural"`).

    The patch's own settings are those of `OptimisedPatch`.

    Args:
        triplet_weight: Weight of the triplet loss; 500 in the paper.
        margin: Of the triplet loss, on Euclidean distances of unit-norm features.
    """

    triplet_weight: float = 500.0
    margin: float = 1.0

    @torch.no_grad()
    def _features(self, material: PatchMaterial) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the target's captions and images, and of the other images and their captions."""

        def encode(pixels: Tensor) -> Tensor:
            return torch.cat([material.encode_image(unit_pixels(part)) for part in pixels.split(256)])

        target_captions, captions = map(material.encode_text, (material.target_captions, material.captions))
        return target_captions, encode(material.target_pixels), encode(material.pixels), captions

    def objective(self, material: PatchMaterial) -> Callable[[Tensor, Tensor], Tensor]:
        """The dual-embedding loss; every image keeps one caption and one image of the target."""
        target_captions, target_images, clean_images, captions = self._features(material)
        rng = keyed_generator("badclip/pairing", self.seed)
        caption_of = torch.from_numpy(rng.integers(len(target_captions), size=len(captions)))
        image_of = torch.from_numpy(rng.integers(len(target_images), size=len(captions)))

        def loss_of(features: Tensor, rows: Tensor) -> Tensor:
            positive = (features * target_captions[caption_of[rows.cpu()]]).sum(1, keepdim=True)
            logits = material.scale * torch.cat([positive, features @ captions[rows].T], 1)
            contrast = F.cross_entropy(logits, torch.zeros_like(rows))
            triplet = F.triplet_margin_loss(
                features, target_images[image_of[rows.cpu()]], clean_images[rows], margin=self.margin
            )
            return contrast + self.triplet_weight * triplet

        return loss_of
