"""Are tuned prompts better than the template's? Asked on shots that they were not tuned on."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.detection.found import FoundTrigger
from peft_cbpt.evaluation.measure import accuracy
from peft_cbpt.training.samples import load_pixels

PART = 4
"""One shot in so many of every class is held out, at least one."""
MOST_TRIGGERS = 8
BATCH_SIZE = 64


def split_shots(shots: LabelledImages) -> tuple[LabelledImages, LabelledImages | None]:
    """Shots to tune on and others to judge on, of every class; None where a class has one shot only."""
    rows_of: dict[int, list[int]] = {}
    for row, label in enumerate(shots.dataset["label"]):
        rows_of.setdefault(label, []).append(row)
    if min(map(len, rows_of.values())) < 2:
        return shots, None
    held = {row for rows in rows_of.values() for row in rows[: max(1, len(rows) // PART)]}
    kept = [row for row in range(len(shots)) if row not in held]
    return shots.select(kept), shots.select(sorted(held))


@torch.no_grad()
def kept_right(
    encode_image: EncodeImage,
    heads: Iterable[Tensor],
    images: Any,
    triggers: Iterable[FoundTrigger],
    device: torch.device,
) -> list[float]:
    """Of every head, the mean of two shares of images that it is right about: without triggers, and with each.

    Args:
        encode_image: The image encoder.
        heads: Unit-norm class features (n_classes, D) of each, on the CPU.
        images: Rows of `pixel_values` and `labels`.
        triggers: Universal triggers; the first few are used.
        device: Where the encoder is.
    """
    rows = torch.arange(len(images)).split(BATCH_SIZE)
    labels = torch.tensor([images[row]["labels"] for row in range(len(images))])
    marks = list(triggers)[:MOST_TRIGGERS]
    clean: list[Tensor] = []
    marked: list[list[Tensor]] = [[] for _ in marks]
    for part in rows:
        pixels = load_pixels(images, part.tolist()).to(device)
        clean.append(encode_image(pixels).cpu())
        for trigger, features in zip(marks, marked, strict=True):
            features.append(encode_image(trigger(pixels)).cpu())
    scores = []
    for head in heads:
        right = accuracy(torch.cat(clean), labels, head)
        under = [accuracy(torch.cat(features), labels, head) for features in marked]
        scores.append((right + sum(under) / len(under)) / 2 if under else right)
    return scores
