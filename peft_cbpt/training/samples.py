"""The trainer's view of its images: checked once, then only row numbers of the feature bank."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from peft_cbpt.errors import InputError


class BankRows(Dataset):
    """What an outer step needs of a sample: which row of the bank it is."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"rows": index}


def checked_samples(images: Dataset, class_names: Sequence[str]) -> list[tuple[int, str]]:
    """Label and id of every training image, after a look at all of them.

    Raises:
        InputError: for a label out of range, a class without an image, or an id that occurs twice.
    """
    rows = (images[row] for row in range(len(images)))  # type: ignore[arg-type]
    samples = [(int(row["labels"]), str(row["sample_id"])) for row in rows]
    labels, ids = {label for label, _ in samples}, Counter(name for _, name in samples)
    if wrong := sorted(labels - set(range(len(class_names)))):
        raise InputError(f"a training image has the label {wrong[0]}, but there are {len(class_names)} classes")
    if missing := sorted(set(range(len(class_names))) - labels):
        raise InputError(f"class {class_names[missing[0]]!r} has no training image: every class needs one")
    (most_common, count), *_ = ids.most_common(1)
    if count > 1:
        raise InputError(f"the sample_id {most_common!r} occurs {count} times: sample ids must differ")
    return samples


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Stack bank rows, or pixels and labels of evaluation images."""
    names = [name for name in ("rows", "pixel_values", "labels") if name in samples[0]]
    return {name: torch.stack([torch.as_tensor(sample[name]) for sample in samples]) for name in names}
