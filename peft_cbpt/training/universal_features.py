"""Images under universal triggers towards classes, encoded as they are needed and kept."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peft_cbpt.clip.pixels import EncodeImage
from peft_cbpt.common.seeding import keyed_generator
from peft_cbpt.detection.families import ImageWide, Kind
from peft_cbpt.detection.found import FoundTrigger, find_trigger, flattened, found_passes, unflattened
from peft_cbpt.detection.suspects import MOST_KINDS, Suspect
from peft_cbpt.detection.universal import approach
from peft_cbpt.features.bank import FeatureBank, LoadPixels
from peft_cbpt.features.plan import Passes
from peft_cbpt.features.store import FeatureStore, fill, missing_anywhere

IMAGE_WIDE = (ImageWide(0.036), ImageWide(0.06), ImageWide(0.108))
"""A BadNet patch of an eighth of the side has about 0.048, Blended more, SIG 0.166."""
IMAGES, STEPS = 32, 20
"""That a trigger is found on, and steps of ascent."""


def kinds_against(suspect: Suspect) -> tuple[Kind, ...]:
    """Of dummy triggers: over the whole image, and as those that showed the class."""
    return (*IMAGE_WIDE, *suspect.kinds)


def spread_rows(labels: Tensor, count: int, generator: np.random.Generator) -> list[int]:
    """The bank rows of up to `count` images, of as many classes as can be."""
    order = generator.permutation(len(labels))
    chosen: list[int] = []
    while len(chosen) < min(count, len(labels)):
        seen: set[int] = set()
        for row in order.tolist():
            label = int(labels[row])
            if row not in chosen and label not in seen and len(chosen) < count:
                seen.add(label)
                chosen.append(row)
    return chosen


def find_universal_triggers(
    encode_image: EncodeImage,
    load_pixels: LoadPixels,
    bank: FeatureBank,
    class_features: Tensor,
    suspects: Sequence[Suspect],
    store: FeatureStore,
    seed: int,
) -> dict[tuple[int, int], FoundTrigger]:
    """A trigger of each of `kinds_against` towards each suspect, by (class, number of the kind).

    Their marks are kept in `store`; each process finds its share of those that it lacks, and all must call.
    """
    kinds = {(one.label, number): kind for one in suspects for number, kind in enumerate(kinds_against(one))}
    rows = spread_rows(bank.labels, IMAGES, keyed_generator("universal trigger", seed))
    pixels = load_pixels(rows).to(bank.features.device)
    side = (pixels.shape[-2], pixels.shape[-1])

    def find(job: Tensor) -> Tensor:
        label, number = job[0].tolist()
        generator = keyed_generator("universal trigger", seed, label, number)
        kind, objective = kinds[label, number], approach(class_features[label])
        return flattened(find_trigger(encode_image, pixels, objective, kind, generator, STEPS).mark, side)[None]

    keys = torch.tensor(list(kinds))
    fill(store, keys, find, 1, "universal triggers")
    store.save()
    marks = zip(kinds.items(), store.look_up(keys), strict=True)
    return {key: FoundTrigger(kind, unflattened(row, kind, side)) for (key, kind), row in marks}


def trigger_passes(n_images: int) -> Passes:
    """Of `find_universal_triggers` against one suspect that was shown by as many kinds as count."""
    one = found_passes(IMAGE_WIDE[0], min(IMAGES, n_images), STEPS)
    return sum([one] * (len(IMAGE_WIDE) + MOST_KINDS), start=Passes())


def digest(triggers: Mapping[tuple[int, int], FoundTrigger]) -> str:
    """SHA-256 of kinds and marks, to four decimals."""
    summed = hashlib.sha256()
    for key, one in triggers.items():
        summed.update(repr((key, one.kind)).encode())
        summed.update((one.mark.double() * 1e4).round().numpy().tobytes())
    return summed.hexdigest()


@dataclass(frozen=True)
class UniversalFeatures:
    """Features of images under universal triggers, by (row, class, number of the trigger's kind).

    Args:
        encode_image: The frozen encoder.
        load_pixels: Clean pixels of bank rows.
        triggers: From `find_universal_triggers`.
        store: What is kept.
        batch_size: Images encoded at once.
    """

    encode_image: EncodeImage
    load_pixels: LoadPixels
    triggers: Mapping[tuple[int, int], FoundTrigger]
    store: FeatureStore
    batch_size: int

    @torch.no_grad()
    def fetch(self, keys: Tensor, device: torch.device) -> None:
        """Encode those of `keys` (B, 3) that are not kept yet, each process its share; all processes must call."""

        def encode(batch: Tensor) -> Tensor:
            pixels = self.load_pixels(batch[:, 0].tolist()).to(device)
            which, place = batch[:, 1:].unique(dim=0, return_inverse=True)
            for number, (label, kind) in enumerate(which.tolist()):
                chosen = (place == number).to(device)
                pixels[chosen] = self.triggers[label, kind](pixels[chosen])
            return self.encode_image(pixels)

        wanted = missing_anywhere(self.store, keys)
        fill(self.store, wanted, encode, self.batch_size, "images under universal triggers")
        self.store.save()

    def look_up(self, keys: Tensor) -> Tensor:
        """Features (B, D), on the CPU, of keys that were fetched."""
        return self.store.look_up(keys)
