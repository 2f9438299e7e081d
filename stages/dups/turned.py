"""Near pairs of pictures of which each also has hashes of its mirrored or rotated copies."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stages.dups.hamming import near_pairs
from stages.dups.pairs import Pairs, join


def turned_pairs(hashes: np.ndarray, turned: np.ndarray, distance: int) -> Iterator[Pairs]:
    """Pairs of rows where the hash of one is within `distance` of the other's hash or of a turned one of it; the least distance counts.

    hashes: uint8 [N, bytes], no two equal; turned: uint8 [N, copies, bytes]. Held in memory: the pairs, and all hashes.
    """
    rows, copies = turned.shape[:2]
    values, inverse = np.unique(np.concatenate([hashes, turned.reshape(-1, hashes.shape[1])]), axis=0, return_inverse=True)
    plain = np.full(len(values), -1)  # value -> the row whose own hash it is
    plain[inverse[:rows]] = np.arange(rows)
    order = np.argsort(inverse[rows:], kind="stable")  # values -> the rows of which it is a turned hash
    owners, starts = order // copies, np.searchsorted(inverse[rows:][order], np.arange(len(values) + 1))
    found = [_crossed(plain, owners, starts, Pairs(same := np.arange(len(values)), same, np.zeros(len(values), np.uint8)))]
    for pairs in near_pairs(values, distance):
        own = (plain[pairs.left] >= 0) & (plain[pairs.right] >= 0)
        found.append(_sorted(plain[pairs.left[own]], plain[pairs.right[own]], pairs.distance[own]))
        found.append(_crossed(plain, owners, starts, pairs))
        found.append(_crossed(plain, owners, starts, Pairs(pairs.right, pairs.left, pairs.distance)))
    everything = join(found)
    everything = everything.take(np.lexsort((everything.distance, everything.right, everything.left)))
    _, first = np.unique(everything.left * rows + everything.right, return_index=True)
    yield everything.take(first)


def _crossed(plain: np.ndarray, owners: np.ndarray, starts: np.ndarray, pairs: Pairs) -> Pairs:
    """Pairs of values (own hash, turned hash) as pairs of rows."""
    own = plain[pairs.left] >= 0
    counts = np.where(own, starts[pairs.right + 1] - starts[pairs.right], 0)
    which = np.repeat(np.arange(len(pairs)), counts)
    place = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts) + starts[pairs.right][which]
    left, right = plain[pairs.left][which], owners[place]
    other = left != right
    return _sorted(left[other], right[other], pairs.distance[which][other])


def _sorted(left: np.ndarray, right: np.ndarray, distance: np.ndarray) -> Pairs:
    return Pairs(np.minimum(left, right), np.maximum(left, right), distance)
