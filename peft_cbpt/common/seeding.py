"""Randomness that depends on a key such as a seed and a sample's id, never on a batch."""

import hashlib

import numpy as np


def keyed_generator(*key: object) -> np.random.Generator:
    """A generator for the given key, such as (trigger name, seed, sample id); the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))
