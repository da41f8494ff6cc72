"""The outer problem (Eq. 16) solved for a matrix of text features, before any context has to express them.

The image side is frozen, so the objective depends on the prompts through their text features only. As free unit-norm
vectors these are found in seconds, without a pass of the text tower. An anchor holds what the undefended prompts say
of the clean images; how firmly, images that were held out decide.
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
ANCHORS = (100.0, 30.0, 10.0, 3.0, 1.0)
"""Weights of the anchor, from firm to loose."""
NEARNESS = 1.0
"""Weight of the mean 1 - cos to the undefended text features."""
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
        """What is minimised: the objective plus `anchor` times KL(undefended || these) of the clean images.

        Features that no image speaks for are held by `NEARNESS` to the undefended ones.
        """
        clean = self.scale * self.bank.features[rows]
        undefended, current = (clean @ self.start.T).softmax(1), (clean @ features.T).log_softmax(1)
        divergence = F.kl_div(current, undefended, reduction="batchmean")
        apart = (1 - (features * self.start).sum(1)).mean()
        return self.objective(features, rows, epoch)[0] + anchor * divergence + NEARNESS * apart

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

    def divergence(self, features: Tensor, goal: Tensor, epoch: int) -> Tensor:
        """Mean KL(goal || features) of the two classifiers, on the clean images and on those with dummy triggers."""
        images = torch.cat([self.bank.features, self.epochs[epoch % len(self.epochs)].features])
        logits, wanted = (self.scale * images @ one.T for one in (features, goal))
        return F.kl_div(logits.log_softmax(1), wanted.softmax(1), reduction="batchmean")

    def pseudo_targets(self, epoch: int) -> Counter[int]:
        """How often each class was y' of an image with a dummy trigger."""
        return Counter(self.epochs[epoch % len(self.epochs)].pseudo_targets.tolist())

    def accuracy(self, features: Tensor, rows: Tensor) -> float:
        """Of the clean images in bank rows."""
        right = (self.bank.features[rows] @ features.T).argmax(1) == self.bank.labels[rows]
        return right.float().mean().item()

    def robust_accuracy(self, features: Tensor, rows: Tensor) -> float:
        """Of these images with the dummy triggers of all epochs; 0 where they got none."""
        right = [torch.zeros(0, dtype=torch.bool, device=rows.device)]
        for drawn in self.epochs:
            place = drawn.place[rows]
            changed = place >= 0
            classes = (drawn.features[place[changed]] @ features.T).argmax(1)
            right.append(classes == self.bank.labels[rows[changed]])
        return torch.cat(right).float().mean().nan_to_num().item()


@dataclass(frozen=True)
class Solution:
    """Text features that solve the outer problem.

    Args:
        features: Unit-norm (n_classes, D).
        anchor: Weight of the anchor.
        held_out: By anchor, accuracy on images that were held out, clean and with their dummy triggers; empty with
            one shot a class.
        undefended: The same of the undefended prompts.
    """

    features: Tensor
    anchor: float
    held_out: dict[float, tuple[float, float]]
    undefended: tuple[float, float] | None

    def as_dict(self) -> dict[str, Any]:
        """What records say of it, JSON-serialisable."""
        held_out = {f"{anchor:g}": accuracies for anchor, accuracies in self.held_out.items()}
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
    """Choose the anchor that serves images best that were held out, and solve on all images.

    It is the one with the highest mean of clean accuracy and accuracy under dummy triggers, among those that cost no
    more than `TOLERANCE` of clean accuracy: from firm to loose, the first that costs more ends the choice. With one
    shot a class nothing can be held out, and the firmest is taken.
    """
    labels = problem.bank.labels
    rows = torch.arange(len(labels), device=labels.device)
    folds = held_out_folds(labels, seed)
    if not folds:
        return Solution(solve_on(problem, rows, ANCHORS[0], seed), ANCHORS[0], {}, None)

    def judged(solved: Sequence[Tensor]) -> tuple[float, float]:
        pairs = list(zip(solved, folds, strict=True))
        clean = sum(problem.accuracy(features, fold) for features, fold in pairs)
        robust = sum(problem.robust_accuracy(features, fold) for features, fold in pairs)
        return clean / len(folds), robust / len(folds)

    undefended = judged([problem.start] * len(folds))
    held_out: dict[float, tuple[float, float]] = {}
    tolerated = {ANCHORS[0]: -1.0}
    for anchor in ANCHORS:
        held_out[anchor] = judged([solve_on(problem, rows[~torch.isin(rows, fold)], anchor, seed) for fold in folds])
        if held_out[anchor][0] < undefended[0] - TOLERANCE:
            break
        tolerated[anchor] = sum(held_out[anchor])
    chosen = max(tolerated, key=tolerated.__getitem__)
    return Solution(solve_on(problem, rows, chosen, seed), chosen, held_out, undefended)


def solve_on(problem: OuterProblem, rows: Tensor, anchor: float, seed: int) -> Tensor:
    """Features (n_classes, D) that minimise the objective on some bank rows plus the anchor."""
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
