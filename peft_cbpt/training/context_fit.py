"""Contexts whose prompts have given text features: what the solver found, written into what the adapter stores.

This costs passes of the text tower, and only over the classes that are not there yet: the solver leaves many where
they were, and others arrive early.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peft_cbpt.training.text_feature_solver import OuterProblem

PASSES_AN_EPOCH = 5
LEARNING_RATE = 0.6
"""In units of the root mean square of the token embedding."""
ARRIVED = 2e-4
"""1 - cos to the goal, below which a class is left alone."""
CLOSE, LEAST_GAIN, PATIENCE = 0.02, 0.02, 4
"""The fit ends where so small a part of the objective's gap is left, or so many epochs close no more of what was."""

EncodeClasses = Callable[[Sequence[int] | None], Tensor]
"""From class indices, or None for all, to unit-norm text features of their prompts."""


class ContextFit:
    """How far class prompts are from the text features that they are to have.

    Args:
        problem: What these features solve.
        goal: Unit-norm (n_classes, D).
    """

    def __init__(self, problem: OuterProblem, goal: Tensor):
        self.problem, self.goal = problem, goal
        self.reached: Tensor | None = None
        self._done = False

    @property
    def moving(self) -> list[int]:
        """The classes that have not arrived, by what was seen of them last; none where more passes would not pay."""
        assert self.reached is not None
        if self._done:
            return []
        return (1 - (self.goal * self.reached).sum(1) > ARRIVED).nonzero()[:, 0].tolist()

    @torch.no_grad()
    def begin(self, encode: EncodeClasses, history: Sequence[Mapping[str, Any]]) -> None:
        """See where all class prompts are, after the epochs that a run that goes on has logged."""
        if self.reached is None:
            self.look(encode)
            self._done = any("objective_gap" in entry for entry in history) and self.is_done(history)

    @torch.no_grad()
    def look(self, encode: EncodeClasses) -> None:
        """See where all class prompts are."""
        self.reached = encode(None).detach().clone()

    def loss(self, encode: EncodeClasses) -> Tensor:
        """Sum of 1 - cos to the goal, over the classes that have not arrived."""
        assert self.reached is not None
        classes = self.moving
        if not classes:
            return 0 * encode([0]).sum()
        features = encode(classes)
        self.reached[classes] = features.detach().to(self.reached)
        return (1 - (features * self.goal[classes]).sum(1)).sum()

    @torch.no_grad()
    def figures(self, epoch: int) -> dict[str, float]:
        """What an epoch logs: the objective's parts with the prompts as they are, and how far these are."""
        assert self.reached is not None
        rows = torch.arange(len(self.problem.bank.labels), device=self.goal.device)
        _, figures = self.problem.objective(self.reached, rows, epoch)
        distance = 1 - (self.goal * self.reached).sum(1).mean()
        means = {name: figure.item() for name, figure in figures.items()}
        left = {"objective_gap": self._gap(self.reached), "distance": distance.item(), "moving": len(self.moving)}
        return means | left

    def _gap(self, features: Tensor) -> float:
        """How much higher the objective of some features is than that of the goal."""
        rows = torch.arange(len(self.problem.bank.labels), device=self.goal.device)
        gap = self.problem.objective(features, rows, 0)[0] - self.problem.objective(self.goal, rows, 0)[0]
        return gap.item()

    def is_done(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether more passes would not pay, by what earlier epochs logged."""
        gaps = [
            self._gap(self.problem.start),
            *(entry["objective_gap"] for entry in history if "objective_gap" in entry),
        ]
        earlier, late = gaps[:-PATIENCE], gaps[-PATIENCE:]
        stands_still = bool(earlier) and min(late) > (1 - LEAST_GAIN) * min(earlier)
        return not self.moving or gaps[-1] <= CLOSE * gaps[0] or stands_still


class RowAdam(torch.optim.SparseAdam):
    """Adam that leaves contexts without a gradient where they are: those of classes that were not encoded."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step, from dense gradients (n_classes, M, d)."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not parameter.grad.is_sparse:
                    rows = parameter.grad.flatten(1).any(1).nonzero()[:, 0]
                    values = parameter.grad[rows]
                    parameter.grad = torch.sparse_coo_tensor(rows[None], values, parameter.shape, is_coalesced=True)
        return super().step(closure)


def fit_optimizer(parameters: Iterable[nn.Parameter], token_embedding: Tensor) -> RowAdam:
    """Adam on the context, with steps in the size of the word embeddings (vocabulary, d)."""
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    rate = LEARNING_RATE * token_embedding.detach().float().square().mean().sqrt().item()
    return RowAdam(learned, lr=rate)
