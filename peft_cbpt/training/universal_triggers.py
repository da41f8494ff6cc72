"""Dummy triggers that are shared by images and aim at suspects: the default's inner loop.

Instead of a perturbation of its own for every image, towards the image's runner-up class, an image gets one of

- a universal trigger, shared by all images and found by gradient ascent towards the suspect's name, over the whole
  image or of a kind that showed the suspect: what an attacker's trigger is, too;
- an embedded trigger, Eq. 9-11 solved in the embedding space, where no image is needed: the own feature (v_neg)
  moved towards the suspect's name (v_pos).

Which one is drawn anew in every epoch. Where the scan finds nobody, the classes that come nearest to it are aimed at
in the same way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.detection.found import FoundTrigger
from peft_cbpt.detection.suspects import Suspicion
from peft_cbpt.features.bank import FeatureBank
from peft_cbpt.method.targets import runner_up
from peft_cbpt.training.dummy_triggers import Classify
from peft_cbpt.training.universal_features import UniversalFeatures, kinds_against
from peft_cbpt.training.universal_settings import UniversalSettings

EMBEDDED = (0.45, 0.6)
"""Range of the part that v_pos has in an embedded trigger."""

UNSUSPECTED_SHARE = 0.05
"""Of the images, in every epoch, where nothing speaks against the classes aimed at."""


@dataclass
class UniversalTriggers:
    """Perturbed features of images, towards the suspected targets; see `DummyTriggers`.

    Args:
        bank: The clean images.
        class_features: Of the undefended prompts, unit-norm (n_classes, D).
        suspicion: The classes that they aim at.
        universal: Features of the images under universal triggers towards them.
        seed: Seed of all draws.
        settings: How many images get which.
    """

    bank: FeatureBank
    class_features: Tensor
    suspicion: Suspicion
    universal: UniversalFeatures
    seed: int
    settings: UniversalSettings = UniversalSettings()
    _drawn: dict[int, dict[str, Tensor]] = field(default_factory=dict, init=False)

    @property
    def triggers(self) -> Mapping[tuple[int, int], FoundTrigger]:
        """See `DummyTriggers`."""
        return self.universal.triggers

    def perturbed_features(self, rows: Tensor, logits: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Perturbed features (B, D) of bank rows and their y' (B,).

        Images of the drawn class itself, and those that the draw leaves alone, keep their clean feature; their y' is
        the runner-up, from `logits` (B, n_classes).
        """
        features, labels = self.bank.features[rows], self.bank.labels[rows]
        draw = {name: one[rows] for name, one in self._draws(epoch).items()}
        targets, perturbed = draw["target"], draw["perturbed"][:, None]
        part = draw["part"][:, None].to(features.dtype)
        dummies = F.normalize((1 - part) * features + part * self.class_features[targets], dim=1)
        shared = draw["universal"].nonzero()[:, 0]
        if len(shared):
            keys = torch.stack([rows, targets, draw["kind"]], 1)[shared]
            dummies[shared] = self.universal.look_up(keys).to(dummies)
        pseudo_targets = torch.where(perturbed[:, 0], targets, runner_up(logits, labels))
        return torch.where(perturbed, dummies, features), pseudo_targets

    def start_epoch(self, epoch: int, classify: Classify) -> None:
        """Encode what the epoch will look up; all processes must call."""
        draw = self._draws(epoch)
        rows = torch.arange(len(self.bank.labels), device=self.bank.labels.device)
        keys = torch.stack([rows, draw["target"], draw["kind"]], 1)[draw["universal"]]
        self.universal.fetch(keys.cpu(), self.bank.features.device)

    def epoch_figures(self, looked_up: Sequence[tuple[int, int]]) -> dict[str, float]:
        """Nothing: what the epochs look up is drawn beforehand."""
        return {}

    def _draws(self, epoch: int) -> dict[str, Tensor]:
        """What every row gets in an epoch; the same in all processes and when a run is resumed."""
        if epoch not in self._drawn:
            generator, labels = keyed_generator("dummy triggers", self.seed, epoch), self.bank.labels
            aims, n = self.suspicion.aims, len(labels)
            share = self.settings.perturbed_share if self.suspicion.doubted else UNSUSPECTED_SHARE
            kinds = np.array([len(kinds_against(one)) for one in aims])
            aim = generator.integers(len(aims), size=n)
            drawn = {
                "target": np.array([one.label for one in aims])[aim],
                "perturbed": generator.random(n) < share,
                "universal": generator.random(n) < self.settings.universal_share,
                "kind": generator.integers(kinds[aim]),
                "part": generator.uniform(*EMBEDDED, n),
            }
            draw = {name: torch.from_numpy(one).to(labels.device) for name, one in drawn.items()}
            draw["perturbed"] &= draw["target"] != labels
            draw["universal"] &= draw["perturbed"]
            self._drawn = {epoch: draw}
        return self._drawn[epoch]
