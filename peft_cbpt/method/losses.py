"""The outer objective: L_bn, L_adv and L_align (Eq. 12-16) on logits.

Logits are `logit_scale * cos(image, class prompt)`, shape (B, n_classes); labels and pseudo-targets are int64 (B,).
Every loss is the mean over the batch.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def l_bn(clean_logits: Tensor, perturbed_logits: Tensor | None, labels: Tensor, alpha: float) -> Tensor:
    """L_bn (Eq. 15): cross-entropy of the clean images plus `alpha` times that of the perturbed ones.

    With `perturbed_logits=None` only the first term: the prompt warm-up.
    """
    loss = F.cross_entropy(clean_logits, labels)
    return loss if perturbed_logits is None else loss + alpha * F.cross_entropy(perturbed_logits, labels)


def l_adv(perturbed_logits: Tensor, pseudo_targets: Tensor) -> Tensor:
    """L_adv (Eq. 13): `-log(1 - f(v + delta; y'))`, computed from logits so that it stays finite."""
    others = perturbed_logits.scatter(1, pseudo_targets[:, None], -torch.inf)
    return (perturbed_logits.logsumexp(1) - others.logsumexp(1)).mean()


def l_align(clean_logits: Tensor, perturbed_logits: Tensor, labels: Tensor) -> Tensor:
    """L_align (Eq. 14): mean squared difference of the two distributions, weighted by the detached f(v; y)."""
    clean, perturbed = clean_logits.softmax(1), perturbed_logits.softmax(1)
    weight = clean.detach().gather(1, labels[:, None])[:, 0]
    return (weight * (clean - perturbed).square().mean(1)).mean()


@dataclass(frozen=True)
class ObjectiveWeights:
    """lambda_1, lambda_2, lambda_3 of Eq. 16 and alpha of Eq. 15."""

    lambda_bn: float = 1.0
    lambda_adv: float = 0.4
    lambda_align: float = 0.4
    alpha: float = 1.0


def purification_objective(
    clean_logits: Tensor,
    perturbed_logits: Tensor,
    labels: Tensor,
    pseudo_targets: Tensor,
    weights: ObjectiveWeights,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The outer objective of Eq. 16, and its three parts unweighted under their names."""
    parts = {
        "loss_bn": l_bn(clean_logits, perturbed_logits, labels, weights.alpha),
        "loss_adv": l_adv(perturbed_logits, pseudo_targets),
        "loss_align": l_align(clean_logits, perturbed_logits, labels),
    }
    total = (
        weights.lambda_bn * parts["loss_bn"]
        + weights.lambda_adv * parts["loss_adv"]
        + weights.lambda_align * parts["loss_align"]
    )
    return total, {name: part.detach() for name, part in parts.items()}
