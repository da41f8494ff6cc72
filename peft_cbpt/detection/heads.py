"""An adapter's head beside the undefended one, and how sure a head is of every class."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Heads:
    """Two heads over the same classes and the same image encoder.

    Args:
        adapted: Unit-norm text features (n_classes, D) of an adapter, on the CPU.
        undefended: The same of the template prompts.
        scale: By what cosines are multiplied before the softmax, 1 / tau.
    """

    adapted: Tensor
    undefended: Tensor
    scale: float


def log_odds(image_features: Tensor, text_features: Tensor, scale: float) -> Tensor:
    """Log-odds (N, n_classes), float64, of every class; differentiable with respect to the features.

    Args:
        image_features: Unit-norm (N, D).
        text_features: Unit-norm (n_classes, D).
        scale: By what cosines are multiplied before the softmax, 1 / tau.

    >>> log_odds(torch.eye(2), torch.eye(2), 3.0).round()
    tensor([[ 3., -3.],
            [-3.,  3.]], dtype=torch.float64)
    """
    log_shares = (scale * image_features.double() @ text_features.double().T).log_softmax(1)
    return log_shares - torch.log(-torch.expm1(log_shares.clamp(max=-torch.finfo(torch.float64).eps)))
