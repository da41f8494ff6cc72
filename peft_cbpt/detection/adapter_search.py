"""Is an adapter of prompts a backdoor of its own? Searches for triggers against its head and the undefended one.

The image encoder may be clean then (BadCLIP of Bai et al., 2024), so that images do not come together under the
trigger, only the adapter's answers do. What tells is that a small universal trigger wins images for a class under the
adapter which the best one for the same class does not win under the undefended prompts.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate.utils import tqdm
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.detection.families import ImageWide
from peft_cbpt.detection.heads import Heads, log_odds
from peft_cbpt.detection.ladder import (
    JUDGED_IMAGES,
    SEARCH_IMAGES,
    STEPS_A_RUNG,
    Climb,
    Search,
    climb_ladder,
    split_images,
)
from peft_cbpt.features.plan import Passes

SIZES = (0.012, 0.025, 0.05)
"""Root mean square changes, from below what an imperceptible trigger has; 4 / 255 is 0.016 at most."""
SOFTNESS = (3.0, 3.0, 6.0, 6.0)
"""By what logits are divided in each search that aims at no class: at 1 most answers are certain, without a slope."""
CANDIDATES = 4
TRIED_CLASSES = 14
"""Candidates, and others drawn at random that they are held against."""
FAMILY = "adapter"


@dataclass(frozen=True)
class Excess:
    """What the adapter adds to the power of triggers towards a class.

    Args:
        label: The class.
        search: Towards it, against the adapter, of the size at which the adapter adds most.
        success: Share of judged images that the trigger wins under the adapter.
        success_undefended: Share that a trigger as large wins under the undefended prompts, searched against these.
    """

    label: int
    search: Search
    success: float
    success_undefended: float

    @property
    def strength(self) -> float:
        """The difference of the two, at least 0."""
        return max(0.0, self.success - self.success_undefended)


def search_adapter(encode_image: EncodeImage, pixels: Tensor, heads: Heads, seed: int) -> list[Excess]:
    """The excess of `TRIED_CLASSES` classes, or of all if there are fewer; the cost does not grow with their number.

    Args:
        encode_image: From pixels in [0, 1] to unit-norm features.
        pixels: Clean images (N, 3, H, W), float in [0, 1], at least two; of any classes.
        heads: Of the adapter.
        seed: Of starts and of the choice of images and classes.
    """
    order = keyed_generator("adapter classes", seed).permutation(len(heads.adapted)).tolist()
    tried = list(dict.fromkeys([*_candidates(encode_image, pixels, heads, seed), *order]))[:TRIED_CLASSES]
    progress = tqdm(tried, desc="looking for triggers towards classes", unit="class", leave=False)
    return [_excess(encode_image, pixels, heads, label, seed) for label in progress]


def adapter_passes(n_classes: int, n_images: int) -> Passes:
    """Of `search_adapter`, on so many clean images."""
    n_find = min(SEARCH_IMAGES, n_images // 2)
    n_judge = min(JUDGED_IMAGES, n_images - n_find)
    climbs = len(SOFTNESS) + 2 * min(TRIED_CLASSES, n_classes)
    return Passes((1 + len(SIZES)) * n_judge * climbs, STEPS_A_RUNG * len(SIZES) * n_find * climbs)


def shared_answers(text_features: Tensor, scale: float) -> Callable[[Tensor], Tensor]:
    """How likely two images of a batch get the same answer, as a function of features (B, D).

    What `universal.collapse` is for features: it aims at no class, and finds the one that is easiest to reach.
    """

    def objective(features: Tensor) -> Tensor:
        return (scale * features @ text_features.to(features).T).softmax(1).mean(0).square().sum()

    return objective


def _climb(
    encode_image: EncodeImage, pixels: Tensor, objective: Callable[[Tensor], Tensor], seed: int, *key: str | int
) -> list[Search]:
    """One search at all sizes, judged on images that it was not made on."""
    generator = keyed_generator("adapter", seed, *key)
    find, judge = split_images(len(pixels), generator)
    climb = Climb(FAMILY, ImageWide(SIZES[0]), SIZES)
    triggers = climb_ladder(encode_image, pixels[find], objective, climb, generator)
    with torch.no_grad():
        clean = encode_image(pixels[judge]).cpu()
        marked = [encode_image(trigger(pixels[judge])).cpu() for trigger in triggers]
    return [Search(FAMILY, 0, trigger, one, clean) for trigger, one in zip(triggers, marked, strict=True)]


def _candidates(encode_image: EncodeImage, pixels: Tensor, heads: Heads, seed: int) -> list[int]:
    """The classes that searches which aim at none win most images for under the adapter alone."""
    gained: Counter[int] = Counter()
    for number, softness in enumerate(SOFTNESS):
        objective = shared_answers(heads.adapted, heads.scale / softness)
        for search in _climb(encode_image, pixels, objective, seed, "any class", number):
            gained.update(_answers(search.features, heads.adapted))
            gained.subtract(_answers(search.features, heads.undefended))
    return [label for label, _ in gained.most_common(CANDIDATES)]


def _answers(features: Tensor, text_features: Tensor) -> list[int]:
    return (features @ text_features.T).argmax(1).tolist()


def _excess(encode_image: EncodeImage, pixels: Tensor, heads: Heads, label: int, seed: int) -> Excess:
    """Two searches towards a class with the same start on the same images, one against either head."""

    def searched(head: Tensor) -> list[tuple[Search, float]]:
        def objective(features: Tensor) -> Tensor:
            return log_odds(features, head.to(features), heads.scale)[:, label].mean()

        searches = _climb(encode_image, pixels, objective, seed, "towards", label)
        return [(one, _answers(one.features, head).count(label) / len(one.features)) for one in searches]

    pairs = zip(searched(heads.adapted), searched(heads.undefended), strict=True)
    every = [Excess(label, search, success, undefended) for (search, success), (_, undefended) in pairs]
    return max(every, key=lambda one: one.success - one.success_undefended)
