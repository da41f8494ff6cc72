"""Features kept under tuples of integers: in memory, or memory-mapped from shards in the disk cache."""

import os
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from uuid import uuid4

import torch
from accelerate.utils import tqdm
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from peft_cbpt.common.processes import from_all_processes, num_processes, own_share
from peft_cbpt.features.disk_cache import UNFINISHED, CacheFolder

SHARD_SUFFIX = ".safetensors"


class FeatureStore:
    """Rows of features by key; what is added is written to the folder at once, as a shard.

    Args:
        folder: Where shards are; None keeps everything in memory.

    A shard that is damaged is removed with a warning, and its features are missing again.
    """

    def __init__(self, folder: CacheFolder | None = None):
        self.folder = folder
        self._shards: list[Tensor] = []
        self._place: dict[tuple[int, ...], tuple[int, int]] = {}
        self._full = False
        if folder is not None:
            for file in sorted(folder.path.glob(f"*{SHARD_SUFFIX}")):
                self._read(file)

    def __len__(self) -> int:
        return len(self._place)

    def keys(self) -> Iterable[tuple[int, ...]]:
        """The keys that are kept."""
        return self._place.keys()

    def missing(self, keys: Tensor) -> Tensor:
        """Positions in `keys` (B, k) of those that are not kept yet, each key once, in order."""
        first: dict[tuple[int, ...], int] = {}
        for position, key in enumerate(map(tuple, keys.tolist())):
            if key not in self._place:
                first.setdefault(key, position)
        return torch.tensor(list(first.values()), dtype=torch.int64)

    def look_up(self, keys: Tensor) -> Tensor:
        """Features (B, D), on the CPU, of keys that are all kept; of no keys an empty tensor."""
        if not len(keys):
            return torch.empty(0)
        places = [self._place[tuple(key)] for key in keys.tolist()]
        return torch.stack([self._shards[shard][row] for shard, row in places])

    def add(self, keys: Tensor, features: Tensor, write: bool = True) -> None:
        """Keep features (B, D) under keys (B, k).

        Args:
            keys: int64 (B, k).
            features: float32 (B, D).
            write: Whether to write them to the folder; false for what another process writes.
        """
        keys, features = keys.cpu(), features.detach().cpu().contiguous()
        file = self._write(keys, features) if write and self.folder is not None and len(keys) else None
        if file is None or not self._read(file):
            self._index(keys, features)

    def _index(self, keys: Tensor, features: Tensor) -> None:
        for row, key in enumerate(map(tuple, keys.tolist())):
            self._place.setdefault(key, (len(self._shards), row))
        self._shards.append(features)

    def _write(self, keys: Tensor, features: Tensor) -> Path | None:
        assert self.folder is not None
        if self._full or not self.folder.cache.make_room(keys.nbytes + features.nbytes):
            if not self._full:
                warnings.warn(
                    f"the cache in {self.folder.cache.folder} is full of keys in use: features are kept in memory "
                    "only; raise --cache_size_gb",
                    stacklevel=2,
                )
            self._full = True
            return None
        name = uuid4().hex
        temporary = self.folder.path / f".{name}{UNFINISHED}"
        save_file({"keys": keys, "features": features}, temporary, {"crc32": _checksum(keys, features)})
        file = self.folder.path / f"{name}{SHARD_SUFFIX}"
        os.replace(temporary, file)
        return file

    def _read(self, file: Path) -> bool:
        try:
            with safe_open(file, "pt") as shard:
                keys, features = shard.get_tensor("keys"), shard.get_tensor("features")
                whole = (shard.metadata() or {}).get("crc32") == _checksum(keys, features)
        except FileNotFoundError:
            return False
        except (SafetensorError, OSError, ValueError):
            whole = False
        if not whole:
            warnings.warn(f"the shard {file} is damaged: it is removed and computed again", stacklevel=2)
            file.unlink(missing_ok=True)
            return False
        self._index(keys, features)
        return True


def fill(
    store: FeatureStore, keys: Tensor, compute: Callable[[Tensor], Tensor], batch_size: int, description: str
) -> None:
    """Compute what `store` lacks, each process its share, and give it to all; all processes must call.

    Args:
        store: What is kept; batches are added as they are done, in the order of the keys.
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
    if num_processes() > 1:
        for others, features in from_all_processes((own, store.look_up(own))):
            new = store.missing(others)
            if len(new):
                store.add(others[new], features[new], write=False)


def missing_anywhere(store: FeatureStore, keys: Tensor) -> Tensor:
    """Those of `keys` (B, k), which may differ among processes, that some process needs and lacks; all must call."""
    missing = keys.cpu()[store.missing(keys)]
    return torch.unique(torch.cat(from_all_processes(missing)), dim=0) if num_processes() > 1 else missing


def _checksum(keys: Tensor, features: Tensor) -> str:
    return str(zlib.crc32(features.numpy().data, zlib.crc32(keys.numpy().data)))
