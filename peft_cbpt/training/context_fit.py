"""Contexts whose prompts classify as given text features do: what the solver found, in what the adapter stores.

No context gives just any text feature, and the cosine does not tell which part of the rest matters. So a pass of the
text tower lowers the divergence between the two classifiers, on clean images and on those with dummy triggers. It
encodes the classes that this pulls on, and leaves the others where they are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peft_cbpt.training.text_feature_solver import OuterProblem

PASSES_AN_EPOCH = 5
LEARNING_RATE = 0.6
"""In units of the root mean square of the token embedding."""
STILL = 1e-6
"""Gradients of this size hardly move a context: Adam would make whole steps of the last digits of kernels."""
PULL = 0.99
"""Part of the squared gradient that the classes of a pass have together."""
CLOSE = 0.01
"""The fit ends where so small a part of the divergence is left."""

EncodeClasses = Callable[[Sequence[int] | None], Tensor]
"""From class indices, or None for all, to unit-norm text features of their prompts."""


class ContextFit:
    """How class prompts come to classify as the text features that they are to have.

    Args:
        problem: What these features solve.
        goal: Unit-norm (n_classes, D).
    """

    def __init__(self, problem: OuterProblem, goal: Tensor):
        self.problem, self.goal = problem, goal
        self.reached: Tensor | None = None
        self._gradient = torch.ones_like(goal)
        self._done = False

    @torch.no_grad()
    def begin(self, encode: EncodeClasses, history: Sequence[Mapping[str, Any]]) -> None:
        """See where all class prompts are, after the epochs that a run that goes on has logged."""
        if self.reached is None:
            self.reached = encode(None).detach().clone()
            self._done = self.is_done(history)

    def loss(self, encode: EncodeClasses, step: int) -> Tensor:
        """Divergence of the prompts from the goal on the images of a step.

        The first step of an epoch encodes all classes, the others those that the gradient was of, the step before.
        """
        assert self.reached is not None
        if self._done:
            return 0 * encode([0]).sum()
        classes = self.pulled if step % PASSES_AN_EPOCH else list(range(len(self.goal)))
        features = encode(classes)
        self.reached[classes] = features.detach().to(self.reached)
        places = torch.tensor(classes, device=self.goal.device)
        reached = self.reached.index_copy(0, places, features.to(self.reached))
        reached.register_hook(self._see)
        return self.problem.divergence(reached, self.goal, step)

    def _see(self, gradient: Tensor) -> None:
        self._gradient = gradient.detach()

    @property
    def pulled(self) -> list[int]:
        """The classes, at least one, that had nearly all of the squared gradient the last time."""
        parts, order = self._gradient.square().sum(1).sort(descending=True, stable=True)
        count = int((parts.cumsum(0) < PULL * parts.sum()).sum()) + 1
        return sorted(order[:count].tolist())

    @torch.no_grad()
    def figures(self, epoch: int) -> dict[str, float]:
        """What an epoch logs: the objective's parts as its last step saw the prompts, and how far these were."""
        assert self.reached is not None
        rows = torch.arange(len(self.problem.bank.labels), device=self.goal.device)
        _, figures = self.problem.objective(self.reached, rows, epoch)
        means = {name: figure.item() for name, figure in figures.items()}
        return means | {"divergence": self._divergence(self.reached), "pulled_classes": len(self.pulled)}

    def _divergence(self, features: Tensor) -> float:
        return self.problem.divergence(features, self.goal, 0).item()

    @torch.no_grad()
    def is_done(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether more passes would not pay, by what earlier epochs logged."""
        logged = [entry["divergence"] for entry in history if "divergence" in entry]
        return bool(logged) and logged[-1] <= CLOSE * self._divergence(self.problem.start)


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
