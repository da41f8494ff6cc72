"""What universal triggers are looked for to do to features."""

from collections.abc import Callable

from torch import Tensor


def collapse(features: Tensor) -> Tensor:
    """Mean cosine between the images of a batch, from unit-norm features (B, D): how alike a trigger makes them.

    After DECREE (Feng et al., 2023), which finds backdoors in encoders by triggers under which all images look alike.

    >>> import torch
    >>> collapse(torch.tensor([[1.0, 0.0], [1.0, 0.0]])), collapse(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    (tensor(1.), tensor(0.))
    """
    return features.mean(0).square().sum()


def approach(text_feature: Tensor) -> Callable[[Tensor], Tensor]:
    """Mean cosine of the images to the text feature (D,) of a class, as a function of features (B, D)."""
    return lambda features: (features @ text_feature).mean()
