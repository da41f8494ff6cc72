"""Dummy triggers that aim at the suspected target: the inner loop of `target="suspected"`.

Instead of a perturbation of its own for every image, towards the image's runner-up class, an image gets one of

- a universal trigger, shared by all images and found by gradient ascent towards the suspect's name, at one of three
  budgets: what an attacker's trigger is, too;
- an embedded trigger, Eq. 9-11 solved in the embedding space, where no image is needed: the own feature (v_neg)
  moved towards the suspect's name (v_pos).

Which one is drawn anew in every epoch. Where no class stands out, a small share of the images gets an embedded trigger
of one of the classes with the lowest alignment.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import tqdm
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.clip.processes import from_all_processes, own_share
from peft_cbpt.clip.seeding import keyed_generator
from peft_cbpt.purification.feature_bank import FeatureBank, LoadPixels
from peft_cbpt.purification.feature_store import FeatureStore
from peft_cbpt.purification.suspects import Suspicion
from peft_cbpt.purification.target_search import search_rows
from peft_cbpt.purification.targets import runner_up
from peft_cbpt.purification.universal import approach, universal_trigger

TRIGGER_RMS = (0.036, 0.06, 0.108)
"""Budgets in [0, 1]-pixel units; a BadNet patch of an eighth of the side has about 0.048, Blended and SIG more."""
UNIVERSAL_SHARE = 0.5
EMBEDDED = (0.45, 0.6)
"""Range of the part that v_pos has in an embedded trigger."""
PERTURBED_SHARE = 0.2
"""Of the images, in every epoch; more of them cost clean accuracy."""
UNSUSPECTED_SHARE = 0.05


@dataclass
class DummyTriggers:
    """Perturbed features of images, towards the suspected targets.

    Args:
        bank: The clean images.
        class_features: Of the undefended prompts, unit-norm (n_classes, D).
        suspicion: The classes that they aim at.
        universal: Features of the images under universal triggers, by (row, class, budget); only of suspects.
        seed: Seed of all draws.
    """

    bank: FeatureBank
    class_features: Tensor
    suspicion: Suspicion
    universal: FeatureStore
    seed: int
    _drawn: dict[int, dict[str, Tensor]] = field(default_factory=dict, init=False)

    def perturbed_features(self, rows: Tensor, clean_logits: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Perturbed features (B, D) of bank rows and their y' (B,).

        Images of the drawn class itself, and those that the draw leaves alone, keep their clean feature; their y' is
        the runner-up, from `clean_logits` (B, n_classes).
        """
        features, labels = self.bank.features[rows], self.bank.labels[rows]
        if epoch not in self._drawn:
            self._drawn = {
                epoch: {name: torch.from_numpy(one).to(rows.device) for name, one in self._draws(epoch).items()}
            }
        draw = {name: one[rows] for name, one in self._drawn[epoch].items()}
        targets, perturbed = draw["target"], (draw["perturbed"] & (draw["target"] != labels))[:, None]
        part = draw["part"][:, None].to(features.dtype)
        dummies = F.normalize((1 - part) * features + part * self.class_features[targets], dim=1)
        shared = (draw["universal"] & perturbed[:, 0]).nonzero()[:, 0]
        if len(shared):
            keys = torch.stack([rows, targets, draw["budget"]], 1)[shared]
            dummies[shared] = self.universal.look_up(keys).to(dummies)
        pseudo_targets = torch.where(perturbed[:, 0], targets, runner_up(clean_logits, labels))
        return torch.where(perturbed, dummies, features), pseudo_targets

    def _draws(self, epoch: int) -> dict[str, np.ndarray]:
        """What every row gets in an epoch; the same in all processes and when a run is resumed."""
        generator, n = keyed_generator("dummy triggers", self.seed, epoch), len(self.bank.labels)
        suspects = [suspect.label for suspect in self.suspicion.suspects]
        return {
            "target": generator.choice(suspects or self.suspicion.candidates, n),
            "perturbed": generator.random(n) < (PERTURBED_SHARE if suspects else UNSUSPECTED_SHARE),
            "universal": generator.random(n) < (UNIVERSAL_SHARE if suspects else 0),
            "budget": generator.integers(len(TRIGGER_RMS), size=n),
            "part": generator.uniform(*EMBEDDED, n),
        }


def add_universal_triggers(
    encode_image: EncodeImage,
    load_pixels: LoadPixels,
    bank: FeatureBank,
    class_features: Tensor,
    targets: list[int],
    store: FeatureStore,
    seed: int,
    batch_size: int,
) -> None:
    """Put what `store` lacks into it: all images under universal triggers towards targets.

    Each process finds its share of the triggers and encodes its share of the images under all of them.
    """
    own_rows = own_share(torch.arange(len(bank.labels))).tolist()
    own_keys = {
        (label, budget): torch.tensor([[row, label, budget] for row in own_rows])
        for label in targets
        for budget in range(len(TRIGGER_RMS))
    }
    lacking = [job for job, keys in own_keys.items() if len(store.missing(keys))]
    wanted = sorted(set().union(*from_all_processes(lacking)))
    if wanted:
        pixels = load_pixels(search_rows(bank.labels, keyed_generator("universal trigger", seed)))
        pixels = pixels.to(bank.features.device)
        own_jobs = own_share(torch.tensor(wanted)).tolist()
        found = [
            universal_trigger(encode_image, pixels, approach(class_features[label]), TRIGGER_RMS[budget]).cpu()
            for label, budget in tqdm(own_jobs, desc="universal triggers", leave=False)
        ]
        deltas = [delta for share in from_all_processes(found) for delta in share]
        jobs = list(zip(wanted, deltas, strict=True))
        for job, delta in tqdm(jobs, desc="images under universal triggers", leave=False):
            for batch in own_keys[job][store.missing(own_keys[job])].split(batch_size):
                if not len(batch):  # this process lacks nothing
                    continue
                with torch.no_grad():
                    images = load_pixels(batch[:, 0].tolist()).to(pixels.device)
                    store.add(batch, encode_image((images + delta.to(pixels.device)).clamp(0, 1)))
    for keys in own_keys.values():
        for others, features in from_all_processes((keys, store.look_up(keys))):
            new = store.missing(others)
            if len(new):
                store.add(others[new], features[new], write=False)
