"""Few-shot sampling: seeded, per class, the same on every machine, and never an image that cannot be read."""

import hashlib
from collections.abc import Sequence

from accelerate.utils import tqdm

from peft_cbpt.common.errors import InputError
from peft_cbpt.data.decoding import UnreadableImage
from peft_cbpt.data.images import LabelledImages
from peft_cbpt.data.skipping import Skipped


def few_shot_order(labels: Sequence[int], sample_ids: Sequence[str], seed: int) -> dict[int, list[int]]:
    """The rows of every class in a seeded order.

    The order is that of a hash of seed and sample id, so it depends neither on the dataset's order nor on the machine.
    """
    rows_of: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for row, label in enumerate(labels):
        rows_of[label].append(row)
    for rows in rows_of.values():
        rows.sort(key=lambda row: hashlib.blake2b(f"{seed}/{sample_ids[row]}".encode()).digest())
    return rows_of


def sample_few_shots(pool: LabelledImages, num_shots: int, seed: int) -> tuple[LabelledImages, list[Skipped]]:
    """`num_shots` images of every class that can be read, grouped by class, and those passed over.

    They are the first in the order of `few_shot_order`; where an image cannot be read, the next of its class takes its
    place.

    Raises:
        InputError: if `num_shots` is below 1 or a class has fewer images that can be read.
    """
    if num_shots < 1:
        raise InputError(f"num_shots must be at least 1, it is {num_shots}")
    pool = pool.keeping()
    class_names = pool.dataset.features["label"].names
    order = few_shot_order(list(pool.dataset["label"]), list(pool.dataset["sample_id"]), seed)
    chosen: list[int] = []
    skipped: list[Skipped] = []
    for label, rows in tqdm(order.items(), desc="sampling shots", unit="class", leave=False):
        if len(rows) < num_shots:
            raise _too_few(num_shots, class_names[label], len(rows))
        found: list[int] = []
        unreadable: list[UnreadableImage] = []
        for row in rows:
            if len(found) == num_shots:
                break
            try:
                pool[row]
                found.append(row)
            except UnreadableImage as error:
                unreadable.append(error)
        if len(found) < num_shots:
            raise InputError(f"{_too_few(num_shots, class_names[label], len(found))}; {unreadable[0]}")
        chosen += found
        skipped += [Skipped(error.sample_id, error.reason, label) for error in unreadable]
    return pool.select(chosen), skipped


def _too_few(num_shots: int, class_name: str, found: int) -> InputError:
    return InputError(
        f"num_shots is {num_shots}, but class {class_name!r} has only {found} images: lower num_shots or add images"
    )
