"""Random draws that depend on what is drawn for, never on rank, worker or step."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, epoch: int, key: str, draw: str) -> np.random.Generator:
    """A generator that is a pure function of (seed, epoch, sample key, name of the draw).

    Two draws of one sample must carry different names, or they return the same numbers.
    """
    parts = f"{seed}\0{epoch}\0{key}\0{draw}".encode()
    digest = hashlib.blake2b(parts, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """A permutation of `count` sample indices (int64 [count]) over the whole set, a function of (seed, epoch)."""
    return generator(seed, epoch, "", "order").permutation(count)
