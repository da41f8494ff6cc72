"""The trainer's view of its images: checked once, then only row numbers of the feature bank."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from peft_cbpt.common.errors import InputError
from peft_cbpt.common.processes import from_all_processes, own_share


class BankRows(Dataset):
    """What an outer step needs of a sample: which row of the bank it is."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"rows": index}


@dataclass(frozen=True)
class Samples:
    """The training images without their pixels.

    Args:
        labels: Of every image.
        ids: Of every image.
        digest: SHA-256 over labels, ids and pixels, in their order.
    """

    labels: list[int]
    ids: list[str]
    digest: str


def checked_samples(images: Dataset, class_names: Sequence[str]) -> Samples:
    """Look at every training image, each process at its share; all processes must call.

    Raises:
        InputError: for an image that cannot be read or has been normalised, a label out of range, a class without an
            image, or an id that occurs twice.
    """
    seen = [sample for share in _seen_by_all(images) for sample in share]
    samples = Samples(
        [label for label, _, _ in seen],
        [name for _, name, _ in seen],
        hashlib.sha256(repr(seen).encode()).hexdigest(),
    )
    labels, ids = set(samples.labels), Counter(samples.ids)
    if wrong := sorted(labels - set(range(len(class_names)))):
        raise InputError(f"a training image has the label {wrong[0]}, but there are {len(class_names)} classes")
    if missing := sorted(set(range(len(class_names))) - labels):
        raise InputError(f"class {class_names[missing[0]]!r} has no training image: every class needs one")
    (most_common, count), *_ = ids.most_common(1)
    if count > 1:
        raise InputError(f"the sample_id {most_common!r} occurs {count} times: sample ids must differ")
    return samples


def _seen_by_all(images: Dataset) -> list[list[tuple[int, str, str]]]:
    rows = own_share(torch.arange(len(images))).tolist()  # type: ignore[arg-type]
    try:
        own: Any = [_seen(images[row]) for row in rows]
    except InputError as error:
        own = error
    shares = from_all_processes(own)
    for share in shares:
        if isinstance(share, InputError):
            raise share
    return shares


def load_pixels(images: Dataset, rows: Sequence[int]) -> Tensor:
    """Float pixels (B, 3, H, W) in [0, 1] of rows whose `pixel_values` are uint8 or float."""
    pixels = torch.stack([images[row]["pixel_values"] for row in rows])
    return pixels if pixels.is_floating_point() else pixels.float() / 255


def _seen(row: dict[str, Any]) -> tuple[int, str, str]:
    pixels: Tensor = row["pixel_values"]
    if pixels.is_floating_point() and not (0 <= pixels.min() and pixels.max() <= 1):
        raise InputError(
            f"the pixels of image {row['sample_id']} are from {pixels.min():.2f} to {pixels.max():.2f}: give pixels "
            "in [0, 1], not normalised ones; the model's mean and standard deviation are applied later"
        )
    digest = hashlib.sha256(f"{pixels.dtype} {tuple(pixels.shape)}".encode())
    digest.update(pixels.contiguous().numpy().tobytes())
    return int(row["labels"]), str(row["sample_id"]), digest.hexdigest()


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Stack bank rows, or pixels and labels of evaluation images."""
    names = [name for name in ("rows", "pixel_values", "labels") if name in samples[0]]
    return {name: torch.stack([torch.as_tensor(sample[name]) for sample in samples]) for name in names}
