"""Contrastive training of a whole CLIP (Eq. 3): pre-training of the pocket model, poisoning, and the baseline FT."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, SequentialSampler
from transformers import Trainer

from peft_cbpt.clip.pixels import PixelNormalizer
from peft_cbpt.common.processes import share_buffers
from peft_cbpt.tuner.families import image_inputs

MAX_LOGIT_SCALE = math.log(100)


def contrastive_loss(image_embeds: Tensor, text_embeds: Tensor, scale: Tensor, same_caption: Tensor) -> Tensor:
    """The symmetric contrastive loss of Eq. 3, with pairs that share a caption as positives of each other.

    Args:
        image_embeds: Unit-norm embeddings, (B, D).
        text_embeds: Unit-norm embeddings of the captions, (B, D).
        scale: `1 / tau`, a scalar.
        same_caption: Boolean (B, B), true where row and column have the same caption; true on the diagonal.

    Returns:
        A scalar. With all captions different this is Eq. 3.
    """
    logits = scale * image_embeds @ text_embeds.T
    targets = same_caption / same_caption.sum(1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def sigmoid_loss(
    image_embeds: Tensor, text_embeds: Tensor, scale: Tensor, bias: Tensor, same_caption: Tensor
) -> Tensor:
    """The loss that SigLIP is trained with: every pair of an image and a caption is asked whether it belongs together.

    Arguments as of `contrastive_loss`, with the `bias` of the logits.
    """
    logits = scale * image_embeds @ text_embeds.T + bias
    return -F.logsigmoid(torch.where(same_caption, logits, -logits)).sum(1).mean()


@dataclass
class ContrastiveCollator:
    """Rows of `pixel_values` (uint8, or float in [0, 1]) and `caption` to a batch for a CLIP.

    Where rows say whether they are poisoned, `n_poisoned` counts those that are.

    Args:
        caption_ids: From captions to token ids (B, L); `LoadedCLIP.caption_ids`.
        normalize: Of the model.
    """

    caption_ids: Callable[[Sequence[str]], Tensor]
    normalize: PixelNormalizer

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        pixels = torch.stack([row["pixel_values"] for row in rows])
        if pixels.dtype == torch.uint8:
            pixels = pixels.float() / 255
        input_ids = self.caption_ids([row["caption"] for row in rows])
        batch = {"pixel_values": self.normalize(pixels), "input_ids": input_ids}
        if "is_poisoned" in rows[0]:
            batch["n_poisoned"] = torch.tensor(sum(row["is_poisoned"] for row in rows))
        return batch


class ContrastiveTrainer(Trainer):
    """`Trainer` that minimises Eq. 3, or for a SigLIP its sigmoid loss, over every weight of a CLIP.

    Args:
        keep_order: Visit the samples in the dataset's own order instead of shuffling them.
        **kwargs: As for `transformers.Trainer`; use `ContrastiveCollator` as `data_collator`.
    """

    def __init__(self, *args: Any, keep_order: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.keep_order = keep_order
        self.n_poisoned = 0
        """Poisoned pairs that this process was trained on, counted once for every epoch."""
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        if self.keep_order:
            return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]
        return super()._get_train_sampler(train_dataset)

    def get_train_dataloader(self) -> DataLoader:
        """As `Trainer`'s; but the streams of this package deal their rows out to the processes by themselves."""
        if not isinstance(self.train_dataset, IterableDataset):
            return super().get_train_dataloader()
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer`'s; every process ends with the same model, the one that is saved."""
        output = super().train(*args, **kwargs)
        share_buffers(self.accelerator.unwrap_model(self.model))
        return output

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        self.n_poisoned += int(inputs.pop("n_poisoned", 0))
        with torch.no_grad():
            self.accelerator.unwrap_model(model).logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        outputs = self.encode(model, inputs)
        ids = inputs["input_ids"]
        same_caption = (ids[:, None] == ids[None]).all(-1)
        unwrapped = self.accelerator.unwrap_model(model)
        embeds = outputs.image_embeds.float(), outputs.text_embeds.float()
        scale, bias = unwrapped.logit_scale.exp(), getattr(unwrapped, "logit_bias", None)
        if bias is None:
            loss = contrastive_loss(*embeds, scale, same_caption)
        else:
            loss = sigmoid_loss(*embeds, scale, bias, same_caption)
        return (loss, outputs) if return_outputs else loss

    def encode(self, model: nn.Module, inputs: dict[str, Tensor]) -> Any:
        """The CLIP's output for a batch of pairs."""
        images = image_inputs(self.accelerator.unwrap_model(model), inputs["pixel_values"])
        return model(**inputs | images)
