"""The search for universal triggers of many kinds under which images look alike, on a ladder of sizes.

It knows neither class names nor labels (after DECREE, Feng et al., 2023), so it is made once however many names its
results are read against. Every trigger is judged on images that it was not found on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import tqdm
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.common.processes import from_all_processes, num_processes, process_index
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.detection.families import Colour, ImageWide, Kind, Patch, Pattern, Warp, Wave
from peft_cbpt.detection.found import (
    START,
    FoundTrigger,
    ascend,
    find_trigger,
    flattened,
    found_passes,
    unflattened,
)
from peft_cbpt.detection.universal import collapse
from peft_cbpt.features.plan import Passes
from peft_cbpt.features.store import SAVE_EVERY, FeatureStore

SEARCH_IMAGES = 24
"""That triggers are found on; fewer where there are fewer than twice as many."""
JUDGED_IMAGES = 48
STEPS_A_RUNG = 8
STEPS_OF_PATCHES = 12
_PLACES = ((0.5, 0.5), (1.0, 1.0), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0))


@dataclass(frozen=True)
class Climb:
    """One search: from a start of its own up a ladder of sizes; a larger mark goes on from the smaller one.

    Args:
        family: What findings call it.
        kind: Of the first rung.
        sizes: Of the rungs, in [0, 1]-pixel units (root mean square), from small to large.
        number: Searches of a family differ by it: it is part of the key of their start and their images.
    """

    family: str
    kind: Kind
    sizes: tuple[float, ...]
    number: int = 0


CLIMBS = (
    *(Climb("image-wide", ImageWide(0.005), (0.005, 0.009, 0.018, 0.036, 0.072), number) for number in range(2)),
    *(Climb("patch", Patch(0.05, place), (0.05,), number) for number, place in enumerate(_PLACES[:2])),
    *(Climb("patch", Patch(0.1, place), (0.1,), number) for number, place in enumerate((*_PLACES, None), 2)),
    *(Climb("pattern", Pattern(0.05, grey=number != 1), (0.05, 0.1, 0.166), number) for number in range(3)),
    Climb("wave", Wave(0.1), (0.1, 0.166)),
    *(Climb("warp", Warp(0.04), (0.04, 0.08), number) for number in range(2)),
    *(Climb("colour", Colour(0.1), (0.1, 0.2), number) for number in range(2)),
)
"""BadNet's patch of an eighth of the side has a size of 0.05, Blended 0.06 to 0.09, SIG's wave 0.166."""
AGAIN = tuple(climb for climb in CLIMBS if climb.number % 2 == 0)
"""For searches away from what was found."""


@dataclass(frozen=True)
class Search:
    """A trigger that was found, and what it does to images that it was not found on.

    Args:
        family: See `Climb`.
        number: See `Climb`.
        trigger: What was found.
        features: Unit-norm (B, D), of judged images under the trigger.
        clean: The same images without it.
    """

    family: str
    number: int
    trigger: FoundTrigger
    features: Tensor
    clean: Tensor

    @property
    def size(self) -> float:
        """The largest root mean square change, in [0, 1]-pixel units."""
        return self.trigger.kind.size

    @property
    def shift(self) -> Tensor:
        """The mean change (D,) that the trigger makes: without what the images themselves have in common."""
        return self.features.mean(0) - self.clean.mean(0)


def search_ladder(
    encode_image: EncodeImage,
    pixels: Tensor,
    seed: int,
    away_from: Sequence[Tensor] = (),
    climbs: Sequence[Climb] = CLIMBS,
    kept: FeatureStore | None = None,
) -> list[Search]:
    """All searches, in the order of `climbs`; each process makes its share, and all call.

    Args:
        encode_image: From pixels in [0, 1] to unit-norm features.
        pixels: Clean images (N, 3, H, W), float in [0, 1], at least two.
        seed: Of starts and of the choice of images.
        away_from: Directions (D,) that do not count as alike: those of what was found already.
        climbs: What is searched.
        kept: The marks that earlier runs found, by number of the climb and of the rung; new ones are added.
    """
    objective, side = collapse_away_from(away_from), (pixels.shape[-2], pixels.shape[-1])
    kept = FeatureStore() if kept is None else kept
    at_once, own = num_processes(), process_index()
    found = []
    for first in tqdm(range(0, len(climbs), at_once), desc="looking for triggers", unit="search", leave=False):
        searched: list[Search] = []
        for number, climb in list(enumerate(climbs))[first : first + at_once][own : own + 1]:
            generator = keyed_generator("scan", seed, len(away_from), climb.family, climb.number)
            find, judge = split_images(len(pixels), generator)
            kinds = [sized(climb.kind, size) for size in climb.sizes]
            keys = torch.tensor([(number, rung) for rung in range(len(kinds))])
            if len(kept.missing(keys)):
                triggers = climb_ladder(encode_image, pixels[find], objective, climb, generator)
            else:
                rows = zip(kept.look_up(keys), kinds, strict=True)
                triggers = [FoundTrigger(kind, unflattened(row, kind, side)) for row, kind in rows]
            with torch.no_grad():
                clean = encode_image(pixels[judge]).cpu()
                features = [encode_image(trigger(pixels[judge])).cpu() for trigger in triggers]
            searched += [
                Search(climb.family, climb.number, trigger, one, clean)
                for trigger, one in zip(triggers, features, strict=True)
            ]
        for place, share in enumerate(from_all_processes(searched), first):
            if share:
                keys = torch.tensor([(place, rung) for rung in range(len(share))])
                kept.add(keys, torch.stack([flattened(one.trigger.mark.cpu(), side) for one in share]))
            found += share
        kept.save(SAVE_EVERY)
    kept.save()
    return found


def ladder_passes(n_images: int, climbs: Sequence[Climb] = CLIMBS) -> Passes:
    """Of some climbs once, on so many clean images."""
    n_find = min(SEARCH_IMAGES, n_images // 2)
    n_judge = min(JUDGED_IMAGES, n_images - n_find)
    passes = Passes()
    for climb in climbs:
        if len(climb.sizes) == 1 or not climb.kind.searched:
            found = found_passes(climb.kind, n_find, STEPS_OF_PATCHES)
        else:
            found = Passes(gradient=STEPS_A_RUNG * len(climb.sizes) * n_find)
        passes += found + Passes((1 + len(climb.sizes)) * n_judge)
    return passes


def split_images(count: int, generator: np.random.Generator) -> tuple[list[int], list[int]]:
    """Rows that a trigger is found on, and others that it is judged on."""
    order = generator.permutation(count).tolist()
    n_find = min(SEARCH_IMAGES, count // 2)
    return order[:n_find], order[n_find : n_find + JUDGED_IMAGES]


def climb_ladder(
    encode_image: EncodeImage,
    pixels: Tensor,
    objective: Callable[[Tensor], Tensor],
    climb: Climb,
    generator: np.random.Generator,
) -> list[FoundTrigger]:
    """The trigger of every rung; arguments as of `families.find_trigger`."""
    if len(climb.sizes) == 1 or not climb.kind.searched:
        mark = find_trigger(encode_image, pixels, objective, climb.kind, generator, STEPS_OF_PATCHES).mark
        kinds = [sized(climb.kind, size) for size in climb.sizes]
        return [FoundTrigger(kind, kind.at_full_size(mark, pixels)) for kind in kinds]
    mark = climb.kind.draw((pixels.shape[-2], pixels.shape[-1]), generator).to(pixels)
    found = []
    for size in climb.sizes:
        mark = _rung(encode_image, pixels, objective, sized(climb.kind, size), mark)
        found.append(FoundTrigger(sized(climb.kind, size), mark))
    return found


def sized(kind: Any, size: float) -> Kind:
    """The same kind, of another size."""
    return replace(kind, size=size)


def _rung(
    encode_image: EncodeImage, pixels: Tensor, objective: Callable[[Tensor], Tensor], kind: Kind, mark: Tensor
) -> Tensor:
    mark = START * kind.at_full_size(mark, pixels)
    for step in range(STEPS_A_RUNG):
        part = 1 - step / STEPS_A_RUNG
        mark = ascend(lambda it: objective(encode_image(kind.apply(pixels, it))), mark, kind, pixels, part)
    return mark


def collapse_away_from(directions: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """`collapse`, of what features (B, D) have outside of the span of some directions (D,)."""
    if not directions:
        return collapse
    basis = torch.linalg.qr(torch.stack(list(directions), 1))[0]

    def objective(features: Tensor) -> Tensor:
        span = basis.to(features)
        return collapse(features - features @ span @ span.T)

    return objective
