"""The outer problem (Eq. 16) solved for a matrix of text features, before any context has to express them.

The image side is frozen, so the objective depends on the prompts through their text features only. As free unit-norm
vectors these are found in seconds, without a pass of the text tower. An anchor holds them near those of the undefended
prompts; how firmly, images that were held out decide.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.features.bank import FeatureBank
from peft_cbpt.method.losses import ObjectiveWeights, purification_objective
from peft_cbpt.method.targets import runner_up
from peft_cbpt.training.dummy_triggers import DummyTriggers

STEPS, SMALLEST_BATCH, LEARNING_RATE = 60, 64, 1e-2
"""Of Adam, with a rate that falls as a cosine."""
MOST_EPOCHS, FEWEST_EPOCHS, IMAGES = 20, 4, 20_000
"""Dummy triggers are drawn anew in every epoch; epochs are as many as show so many images."""
ANCHORS = (100.0, 30.0, 10.0, 5.0, 2.5, 1.0)
"""Weights of the anchor, from firm to loose."""
TOLERANCE = 0.01
"""Of clean accuracy on images that were held out, what a solution may cost."""
FOLDS, HELD_OUT = 4, 1000
"""Of the shots a quarter is held out, and another, until so many images or all were."""


@dataclass(frozen=True)
class Perturbed:
    """The images that have a dummy trigger in an epoch.

    Args:
        place: Of every bank row, its place among them, or -1; int64 (N,).
        features: Unit-norm (K, D).
        pseudo_targets: y' of each, int64 (K,).
    """

    place: Tensor
    features: Tensor
    pseudo_targets: Tensor


@dataclass(frozen=True)
class OuterProblem:
    """Eq. 16 as a function of text features.

    Args:
        bank: The clean images.
        epochs: What the inner loop makes of them, epoch by epoch.
        start: Unit-norm features (n_classes, D) of the undefended prompts.
        scale: Factor from cosines to logits.
        weights: Of the objective.
    """

    bank: FeatureBank
    epochs: Sequence[Perturbed]
    start: Tensor
    scale: float
    weights: ObjectiveWeights

    def batch_size(self, n_images: int) -> int:
        """Images of a step, so that the steps of an epoch see all of them."""
        return max(math.ceil(n_images * len(self.epochs) / STEPS), min(SMALLEST_BATCH, n_images))

    def anchored(self, features: Tensor, rows: Tensor, epoch: int, anchor: float) -> Tensor:
        """What is minimised: the objective plus `anchor` times the mean 1 - cos to the undefended features."""
        return self.objective(features, rows, epoch)[0] + anchor * (1 - (features * self.start).sum(1)).mean()

    def objective(self, features: Tensor, rows: Tensor, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Of text features (n_classes, D) on bank rows (B,): the objective, and what is logged of it."""
        labels, drawn = self.bank.labels[rows], self.epochs[epoch % len(self.epochs)]
        clean = self.scale * self.bank.features[rows] @ features.T
        place = drawn.place[rows]
        changed = (place >= 0).nonzero()[:, 0]
        marked, targets = drawn.features[place[changed]], drawn.pseudo_targets[place[changed]]
        logits = self.scale * marked @ features.T
        pseudo_targets = runner_up(clean.detach(), labels).index_copy(0, changed, targets)
        perturbed = clean.index_copy(0, changed, logits)
        loss, figures = purification_objective(clean, perturbed, labels, pseudo_targets, self.weights)
        figures["clean_accuracy"] = (clean.argmax(1) == labels).float().mean()
        if len(changed):
            figures["inversion_success"] = (logits.argmax(1) == targets).float().mean()
        return loss, figures

    def pseudo_targets(self, epoch: int) -> Counter[int]:
        """How often each class was y' of an image with a dummy trigger."""
        return Counter(self.epochs[epoch % len(self.epochs)].pseudo_targets.tolist())

    def accuracy(self, features: Tensor, rows: Tensor) -> float:
        """Of the clean images in bank rows."""
        right = (self.bank.features[rows] @ features.T).argmax(1) == self.bank.labels[rows]
        return right.float().mean().item()


@dataclass(frozen=True)
class Solution:
    """Text features that solve the outer problem.

    Args:
        features: Unit-norm (n_classes, D).
        anchor: Weight of the anchor.
        held_out: Clean accuracy on images that were held out, by anchor; empty with one shot a class.
        undefended: Of the undefended prompts on these.
    """

    features: Tensor
    anchor: float
    held_out: dict[float, float]
    undefended: float | None

    def as_dict(self) -> dict[str, Any]:
        """What records say of it, JSON-serialisable."""
        held_out = {f"{anchor:g}": accuracy for anchor, accuracy in self.held_out.items()}
        return {"anchor": self.anchor, "held_out_accuracy": held_out, "undefended_accuracy": self.undefended}


def num_epochs(n_images: int) -> int:
    """Epochs whose dummy triggers a solution is made with."""
    return min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(IMAGES / n_images)))


def perturbed_epochs(dummies: DummyTriggers, bank: FeatureBank, start: Tensor) -> list[Perturbed]:
    """The dummy triggers of every epoch; all processes call."""
    rows = torch.arange(len(bank.labels), device=bank.labels.device)
    drawn = []
    for epoch in range(num_epochs(len(rows))):
        dummies.start_epoch(epoch, lambda rows: bank.features[rows] @ start.T)
        features, targets = dummies.perturbed_features(rows, bank.features @ start.T, epoch)
        changed = (features != bank.features).any(1).nonzero()[:, 0]
        place = torch.full_like(rows, -1).index_copy(0, changed, torch.arange(len(changed), device=rows.device))
        drawn.append(Perturbed(place, features[changed], targets[changed]))
    return drawn


def solve(problem: OuterProblem, seed: int) -> Solution:
    """Choose the loosest anchor that costs no accuracy on images that were held out, and solve on all images.

    From firm to loose the first anchor that costs more than `TOLERANCE` ends the choice. With one shot a class nothing
    can be held out, and the firmest but one is taken.
    """
    labels = problem.bank.labels
    rows = torch.arange(len(labels), device=labels.device)
    folds = held_out_folds(labels, seed)
    if not folds:
        return Solution(solve_on(problem, rows, ANCHORS[1], seed), ANCHORS[1], {}, None)
    undefended = _mean([problem.accuracy(problem.start, fold) for fold in folds])
    held_out: dict[float, float] = {}
    chosen = ANCHORS[0]
    for anchor in ANCHORS:
        solved = [solve_on(problem, rows[~torch.isin(rows, fold)], anchor, seed) for fold in folds]
        held_out[anchor] = _mean([problem.accuracy(one, fold) for one, fold in zip(solved, folds, strict=True)])
        if held_out[anchor] < undefended - TOLERANCE:
            break
        chosen = anchor
    return Solution(solve_on(problem, rows, chosen, seed), chosen, held_out, undefended)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def solve_on(problem: OuterProblem, rows: Tensor, anchor: float, seed: int) -> Tensor:
    """Features (n_classes, D) that minimise the objective on some bank rows plus `anchor` times the mean 1 - cos."""
    moved = torch.zeros_like(problem.start, requires_grad=True)
    optimizer = torch.optim.Adam([moved], LEARNING_RATE)
    epochs = len(problem.epochs)
    batch = problem.batch_size(len(rows))
    generator = keyed_generator("text features", seed)
    turns = math.ceil(STEPS * batch / len(rows))
    order = torch.from_numpy(np.concatenate([generator.permutation(len(rows)) for _ in range(turns)]))
    for step, part in enumerate(order.split(batch)[:STEPS]):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / STEPS)) / 2
        features = F.normalize(problem.start + moved, dim=1)
        loss = problem.anchored(features, rows[part.to(rows.device)], step * epochs // STEPS, anchor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return F.normalize(problem.start + moved.detach(), dim=1)


def held_out_folds(labels: Tensor, seed: int) -> list[Tensor]:
    """Bank rows to hold out, a share of every class at a time; none where a class has one shot."""
    generator = keyed_generator("held out", seed)
    n_folds = min(FOLDS, min(labels.unique(return_counts=True)[1].tolist()))
    if n_folds < 2:
        return []
    fold = torch.empty(len(labels), dtype=torch.int64)
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero()[:, 0].cpu()
        fold[rows[torch.from_numpy(generator.permutation(len(rows)))]] = torch.arange(len(rows)) % n_folds
    folds = [(fold == number).nonzero()[:, 0].to(labels.device) for number in range(n_folds)]
    return folds[: math.ceil(HELD_OUT / min(map(len, folds)))]
