"""What the outer step asks the inner loop for; `runner_up` is the paper's, `universal_triggers` the default."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from peft_cbpt.detection.found import FoundTrigger
from peft_cbpt.detection.suspects import Suspect, Suspicion

Classify = Callable[[Tensor], Tensor]
"""From bank rows (B,) to logits (B, n_classes) of their clean images with the prompts as they are."""


class DummyTriggers(Protocol):
    """Perturbed features e'_v of the clean images, and the pseudo-target y' of each."""

    @property
    def suspicion(self) -> Suspicion | None:
        """What they aim at; None where every image has a class of its own to aim at."""

    @property
    def triggers(self) -> Mapping[tuple[int, int], FoundTrigger]:
        """Those that all images share, by class and number."""

    def start_epoch(self, epoch: int, classify: Classify) -> None:
        """Make what the epoch is likely to look up; all processes call."""

    def perturbed_features(self, rows: Tensor, logits: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """For bank rows (B,), and logits (B, n_classes) of their clean images: features (B, D), and y', int64 (B,).

        An image without a dummy trigger has its clean feature. All processes call.
        """

    def epoch_figures(self, looked_up: Sequence[tuple[int, int]]) -> dict[str, float]:
        """What is logged of an epoch that looked up these (row, y')."""


def suspects_of(dummies: DummyTriggers | None, class_names: Sequence[str]) -> dict[str, list[dict[str, Any]]] | None:
    """What was aimed at, JSON-serialisable: `suspects` and `candidates`; None where nothing was looked for."""
    if dummies is None or dummies.suspicion is None:
        return None

    def described(one: Suspect) -> dict[str, Any]:
        return {
            "class": class_names[one.label],
            "kind": one.family,
            "score": round(one.score, 4),
            "false_alarm_rate": float(f"{one.false_alarm_rate:.3g}"),
            "success_rate": round(one.success_rate, 4),
        }

    found = dummies.suspicion
    return {name: [described(one) for one in getattr(found, name)] for name in ("suspects", "candidates")}
