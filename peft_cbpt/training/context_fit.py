"""Contexts whose prompts have given text features: what the solver found, written into what the adapter stores.

This costs passes of the text tower, and only over the classes that are not there yet: the solver leaves many where
they were, and others arrive early.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.training.text_feature_solver import OuterProblem

PASSES_AN_EPOCH = 5
LEARNING_RATE = 0.6
"""In units of the root mean square of the token embedding."""
STILL = 1e-6
"""Gradients of this size hardly move a context: Adam would make whole steps of the last digits of kernels."""
ARRIVED = 2e-4
"""1 - cos to the goal, below which a class is left alone."""
CLOSE = 0.01
"""The fit ends where so small a part of the objective's gap is left."""
FITTED = 0.25
"""Of the epochs, those that go towards the solution; in the others the prompts learn from the objective itself."""

EncodeClasses = Callable[[Sequence[int] | None], Tensor]
"""From class indices, or None for all, to unit-norm text features of their prompts."""


class ContextFit:
    """How far class prompts are from the text features that they are to have.

    Args:
        problem: What these features solve.
        goal: Unit-norm (n_classes, D).
        anchor: Weight of the anchor that they were found with.
        seed: Of the images of a true outer step.
    """

    def __init__(self, problem: OuterProblem, goal: Tensor, anchor: float, seed: int):
        self.problem, self.goal, self.anchor, self.seed = problem, goal, anchor, seed
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

    def outer_loss(self, encode: EncodeClasses, step: int) -> Tensor:
        """Of a true outer step: what the solver minimises, on a batch of images, of the prompts themselves."""
        assert self.reached is not None
        classes, labels = self.moving, self.problem.bank.labels
        if not classes:
            return 0 * encode([0]).sum()
        generator = keyed_generator("outer step", self.seed, step)
        count = self.problem.batch_size(len(labels))
        rows = torch.from_numpy(generator.permutation(len(labels))[:count]).to(labels.device)
        features = self.reached.index_copy(0, torch.tensor(classes, device=labels.device), encode(classes))
        return self.problem.anchored(features, rows, step, self.anchor)

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
        gap = [entry["objective_gap"] for entry in history if "objective_gap" in entry][-1]
        return not self.moving or gap <= CLOSE * self._gap(self.problem.start)


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
                    parameter.grad = torch.sparse_coo_tensor(
                        rows[None], values, parameter.shape, is_coalesced=True, check_invariants=False
                    )
        return super().step(closure)


def fit_optimizer(parameters: Iterable[nn.Parameter], token_embedding: Tensor) -> RowAdam:
    """Adam on the context, with steps in the size of the word embeddings (vocabulary, d)."""
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    rate = LEARNING_RATE * token_embedding.detach().float().square().mean().sqrt().item()
    return RowAdam(learned, lr=rate, eps=STILL)
