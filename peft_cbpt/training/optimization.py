"""How the context learns: SGD, with CoOp's cosine over epochs."""

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR


def context_optimizer(
    parameters: Iterable[nn.Parameter], learning_rate: float, momentum: float, weight_decay: float
) -> SGD:
    """SGD on those parameters that learn."""
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    return SGD(learned, learning_rate, momentum=momentum, weight_decay=weight_decay)


def cosine_over_epochs(optimizer: Optimizer, num_training_steps: int, num_epochs: float) -> LambdaLR:
    """A learning rate that falls as a cosine from epoch to epoch and is constant within one."""
    epochs = math.ceil(num_epochs)
    steps_per_epoch = max(1, round(num_training_steps / num_epochs))

    def cosine(step: int) -> float:
        return (1 + math.cos(math.pi * min(step // steps_per_epoch, epochs) / epochs)) / 2

    return LambdaLR(optimizer, cosine)
