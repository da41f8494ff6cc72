"""CleanCLIP (Bansal et al., 2023): contrastive fine-tuning with self-supervision within each modality."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peft_cbpt.clip.pixels import PixelNormalizer
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.training.contrastive_trainer import ContrastiveCollator, ContrastiveTrainer, contrastive_loss


def augment_caption(caption: str, rate: float, rng: random.Random) -> str:
    """Easy data augmentation (Wei & Zou, 2019) without its thesaurus: words swapped, repeated elsewhere, and dropped.

    Args:
        caption: At least one word is kept.
        rate: Share of the words that each operation touches, in [0, 1]; the first two touch at least one.
        rng: Where the choices come from.
    """
    words = caption.split()
    changes = max(1, round(rate * len(words)))
    for _ in range(changes):
        i, j = rng.randrange(len(words)), rng.randrange(len(words))
        words[i], words[j] = words[j], words[i]
    for _ in range(changes):
        words.insert(rng.randrange(len(words) + 1), rng.choice(words))
    return " ".join([word for word in words if rng.random() > rate] or [rng.choice(words)])


@dataclass
class CleanCLIPCollator:
    """As `ContrastiveCollator`, with an augmented view of every image and caption (`augmented_...`).

    Args:
        caption_ids: As in `ContrastiveCollator`.
        normalize: Of the model.
        seed: Seed of the augmentations: of a caption with its sample's id, of images with that of the batch's first.
        rate: Share of words that each text operation touches; 0.1 in the paper's code.
    """

    caption_ids: Callable[[Sequence[str]], Tensor]
    normalize: PixelNormalizer
    seed: int = 0
    rate: float = 0.1

    def __post_init__(self) -> None:
        from kornia.augmentation.auto import AutoAugment

        self._augment_images = AutoAugment("imagenet")

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        pixels = torch.stack([row["pixel_values"] for row in rows])
        pixels = pixels if pixels.is_floating_point() else pixels.float() / 255
        draws = [keyed_generator("cleanclip", self.seed, row["sample_id"], row["caption"]) for row in rows]
        captions = [
            augment_caption(row["caption"], self.rate, random.Random(int(draw.integers(2**32))))
            for row, draw in zip(rows, draws, strict=True)
        ]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(draws[0].integers(2**32)))
            views = torch.cat([self._augment_images(image[None]) for image in pixels]).clamp(0, 1)
        collate = ContrastiveCollator(self.caption_ids, self.normalize)
        batch = collate([row | {"pixel_values": image} for row, image in zip(rows, pixels, strict=True)])
        augmented = collate(
            [{"pixel_values": image, "caption": text} for image, text in zip(views, captions, strict=True)]
        )
        return batch | {f"augmented_{name}": value for name, value in augmented.items()}


class CleanCLIPTrainer(ContrastiveTrainer):
    """Minimises Eq. 3 + `self_supervision` * (image-image + text-text contrastive loss).

    Args:
        self_supervision: Weight of each of the two; 1 by default. The authors' code gives each a half and compares own
            with view in one direction only.
        **kwargs: As for `transformers.Trainer`; use `CleanCLIPCollator` as `data_collator`.
    """

    def __init__(self, *args: Any, self_supervision: float = 1.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.self_supervision = self_supervision

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        views = {
            name.removeprefix("augmented_"): inputs.pop(name) for name in list(inputs) if name.startswith("augmented_")
        }
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        augmented = self.encode(model, views)
        scale = self.accelerator.unwrap_model(model).logit_scale.exp()
        for name in ("image_embeds", "text_embeds"):
            own, view = getattr(outputs, name).float(), getattr(augmented, name).float()
            only_itself = torch.eye(len(own), dtype=torch.bool, device=own.device)
            loss = loss + self.self_supervision * contrastive_loss(own, view, scale, only_itself)
        return (loss, outputs) if return_outputs else loss
