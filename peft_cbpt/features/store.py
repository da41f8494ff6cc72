"""Features kept under tuples of integers: in memory, and in one safetensors file."""

import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from accelerate.utils import tqdm
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from peft_cbpt.common.errors import InputError
from peft_cbpt.common.files import save_tensors
from peft_cbpt.common.processes import from_all_processes, is_main_process, num_processes, own_share

SAVE_EVERY = 60.0
"""Seconds of work that a killed run may lose."""


class FeatureStore:
    """Rows of features by key.

    Args:
        file: Where they are kept between runs; None keeps them in memory only. A damaged file is computed anew, with
            a warning.
        description: What the features depend on, written into the file for people to read.
    """

    def __init__(self, file: Path | None = None, description: str = ""):
        self.file = file
        self.description = description
        self._rows: dict[tuple[int, ...], Tensor] = {}
        self._saved = 0
        self._save_time = time.monotonic()
        if file is not None and file.is_file():
            try:
                kept = load_file(file)
                self.add(kept["keys"], kept["features"])
                self._saved = len(self)
            except (SafetensorError, OSError, KeyError, InputError):
                warnings.warn(f"{file} is damaged: its features are computed again", stacklevel=2)

    def __len__(self) -> int:
        return len(self._rows)

    def keys(self) -> Iterable[tuple[int, ...]]:
        """The keys that are kept."""
        return self._rows.keys()

    def missing(self, keys: Tensor) -> Tensor:
        """Positions in `keys` (B, k) of those that are not kept yet, each key once, in order."""
        first: dict[tuple[int, ...], int] = {}
        for position, key in enumerate(map(tuple, keys.tolist())):
            if key not in self._rows:
                first.setdefault(key, position)
        return torch.tensor(list(first.values()), dtype=torch.int64)

    def look_up(self, keys: Tensor) -> Tensor:
        """Features (B, D), on the CPU, of keys that are all kept; of no keys an empty tensor."""
        rows = [self._rows[tuple(key)] for key in keys.tolist()]
        return torch.stack(rows) if rows else torch.empty(0)

    def add(self, keys: Tensor, features: Tensor) -> None:
        """Keep features (B, D) under keys, int64 (B, k).

        Raises:
            InputError: if a feature is not finite.
        """
        features = features.detach().cpu()
        if not features.isfinite().all():
            raise InputError(
                "the image encoder gives features that are not finite: load the model in float32 or bfloat16, and "
                "leave inversion_dtype at fp32"
            )
        self._rows.update(zip(map(tuple, keys.tolist()), features, strict=True))

    def save(self, at_least_after: float = 0.0) -> None:
        """Replace the file by one that has all that is kept, if there is something new; the first process does.

        Nothing is done within `at_least_after` seconds of the last time.
        """
        waited = time.monotonic() - self._save_time >= at_least_after
        if self.file is None or len(self) == self._saved or not waited or not is_main_process():
            return
        keys = torch.tensor(list(self._rows))
        try:
            save_tensors(self.file, {"keys": keys, "features": self.look_up(keys)}, {"key": self.description})
        except (OSError, SafetensorError) as error:
            warnings.warn(f"features are not kept for other runs, cannot write {self.file}: {error}", stacklevel=2)
        self._saved, self._save_time = len(self), time.monotonic()


def fill(
    store: FeatureStore, keys: Tensor, compute: Callable[[Tensor], Tensor], batch_size: int, description: str
) -> None:
    """Compute what `store` lacks, each process its share, and give it to all; all processes must call.

    Args:
        store: What is kept; batches are added in the order of the keys.
        keys: int64 (B, k), each once, the same in all processes.
        compute: From keys (b, k) to features (b, D).
        batch_size: The largest b.
        description: Of the progress bar.
    """
    own = own_share(keys)
    batches = own[store.missing(own)].split(batch_size)
    for batch in tqdm(batches, desc=description, leave=False, disable=len(batches) < 2):
        if len(batch):
            store.add(batch, compute(batch))
            store.save(SAVE_EVERY)
    if num_processes() > 1:
        for others, features in from_all_processes((own, store.look_up(own))):
            new = store.missing(others)
            if len(new):
                store.add(others[new], features[new])


def missing_anywhere(store: FeatureStore, keys: Tensor) -> Tensor:
    """Those of `keys` (B, k), which may differ among processes, that some process needs and lacks; all must call."""
    missing = keys.cpu()[store.missing(keys)]
    return torch.unique(torch.cat(from_all_processes(missing)), dim=0) if num_processes() > 1 else missing
