"""Randomness that depends on a key such as a seed and a sample's id, never on a batch."""

import hashlib

import numpy as np


def keyed_generator(*key: object) -> np.random.Generator:
    """A generator for the given key, such as (trigger name, seed, sample id); the same on every machine.

    >>> one, other = (keyed_generator("trigger", 0, "cat.jpg").random(3).tolist() for _ in range(2))
    >>> one == other
    True
    """
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))
