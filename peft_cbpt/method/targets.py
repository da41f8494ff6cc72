"""Pseudo-targets y' (Eq. 10) and positive samples v_pos (Section 4.2)."""

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

PositiveRule = Literal["farthest", "closest", "random"]


def runner_up(logits: Tensor, labels: Tensor) -> Tensor:
    """y' (Eq. 10): the most likely class other than the true one, from logits (B, n_classes); int64 (B,).

    >>> runner_up(torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), torch.tensor([0, 1]))
    tensor([1, 0])
    """
    return logits.scatter(1, labels[:, None], -torch.inf).argmax(1)


def _draw(seed: int, sample_id: str, pseudo_target: int, n_choices: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{sample_id}/{pseudo_target}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % n_choices


def choose_positives(
    rule: PositiveRule,
    rows: Tensor,
    pseudo_targets: Tensor,
    features: Tensor,
    labels: Tensor,
    sample_ids: Sequence[str],
    seed: int,
) -> Tensor:
    """The bank row of each sample's positive v_pos: an image of class y', never the sample itself.

    Args:
        rule: `farthest` (the paper's): lowest cosine to the sample's own clean feature; `closest`: highest;
            `random`: drawn from the seed, the sample's id and y'.
        rows: Bank rows of the samples, int64 (B,).
        pseudo_targets: y' of each, int64 (B,); every such class must have a sample in the bank.
        features: The bank's unit-norm clean features (N, D).
        labels: The bank's labels (N,).
        sample_ids: The bank's sample ids.
        seed: Seed of `random`.

    Returns:
        Bank rows, int64 (B,).
    """
    chosen = []
    for row, target in zip(rows.tolist(), pseudo_targets.tolist(), strict=True):
        candidates = (labels == target).nonzero()[:, 0]
        candidates = candidates[candidates != row]
        if rule == "random":
            pick = _draw(seed, sample_ids[row], target, len(candidates))
        else:
            cosines = features[candidates] @ features[row]
            pick = int(cosines.argmin() if rule == "farthest" else cosines.argmax())
        chosen.append(candidates[pick])
    return torch.stack(chosen)
