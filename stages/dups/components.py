"""Components of a graph given as arrays of edges, and how chains that hold only through weak links are split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def distinct(values: np.ndarray) -> np.ndarray:
    """The different values of int64 [N], rising. numpy's `unique` hashes whole numbers from 2.3 on: for 4 million of them 4.7 s, and 0.05 s by a sort."""
    values = np.sort(values)
    new = np.ones(len(values), bool)
    new[1:] = values[1:] != values[:-1]
    return values[new]


def components(rows: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The least row of each row's component (int64 [rows]); edges left[i] - right[i], int64 [E].

    Union-find on arrays: each root is hooked under the least root it has an edge to, then paths are halved until they are flat.
    """
    linked = np.zeros(rows, bool)
    linked[left] = linked[right] = True
    least, some = np.arange(rows), np.flatnonzero(linked)
    place = np.empty(rows, np.int32)  # among the rows with an edge: few, as a rule
    place[some] = np.arange(len(some))
    least[some] = some[_roots(len(some), place[left], place[right])]
    return least


def _roots(rows: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    parent = np.arange(rows, dtype=np.int32)
    while len(left):
        np.minimum.at(parent, np.maximum(left, right), np.minimum(left, right))
        while True:
            above = parent[parent]
            if np.array_equal(above, parent):
                break
            parent = above
        left, right = parent[left], parent[right]
        open_ = left != right
        left, right = left[open_], right[open_]
    return parent


def split_weak_chains(
    rows: int,
    left: np.ndarray,
    right: np.ndarray,
    distance: np.ndarray,
    reach: int,
    between: Callable[[int, int], int],
    spread: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Components (int64 [rows], the least row of each) in which no chain of near links joins what is far apart.

    Links are taken from the strongest to the weakest (equal ones by their rows). Each joins two groups only when the groups' centres are at most
    `reach` bits apart; a link that would join groups further apart is weak and is left out. The centre of a group is its row with
    the strongest links (greatest sum of what each link falls short of the weakest, plus one), the least such row among equals.

    left, right, distance: the links within the distance that decides, each once. between(a, b): bits between two rows. spread(rows in order of
    their component, where each begins): an upper bound of the bits between any two rows of each component; those within `reach` cannot be split.
    """
    whole = components(rows, left, right)
    linked = distinct(np.concatenate([left, right]))
    by_component = linked[np.argsort(whole[linked], kind="stable")]
    labels, starts = np.unique(whole[by_component], return_index=True)
    wide = np.zeros(rows, bool)
    if len(labels):
        wide[labels[spread(by_component, starts) > reach]] = True
    doubtful = np.flatnonzero(wide[whole[left]])
    if not len(doubtful):
        return whole
    slack = int(distance.max()) + 1 - distance.astype(np.int64)
    strength = np.bincount(left, slack, rows) + np.bincount(right, slack, rows)
    order = doubtful[np.lexsort((right[doubtful], left[doubtful], distance[doubtful]))]
    taken = _strong_links(left[order], right[order], strength, reach, between)
    kept = np.ones(len(left), bool)
    kept[doubtful] = False
    kept[order[taken]] = True
    return components(rows, left[kept], right[kept])


def _strong_links(left: np.ndarray, right: np.ndarray, strength: np.ndarray, reach: int, between: Callable[[int, int], int]) -> np.ndarray:
    """Which of the links, in their order, join two groups (places, int64)."""
    parent: dict[int, int] = {}
    centre: dict[int, int] = {}

    def root(row: int) -> int:
        while (above := parent.setdefault(row, row)) != row:
            parent[row] = row = parent.setdefault(above, above)
        return row

    taken = []
    for place, (one, other) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        a, b = root(one), root(other)
        if a == b:
            continue
        ca, cb = centre.get(a, a), centre.get(b, b)
        if between(ca, cb) > reach:
            continue
        taken.append(place)
        parent[max(a, b)] = min(a, b)
        centre[min(a, b)] = min(ca, cb, key=lambda row: (-strength[row], row))
    return np.array(taken, np.int64)


def greatest_forest(left: np.ndarray, right: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Which edges (places, rising) make a spanning forest of greatest weight; among equal ones those that come first (Boruvka).

    At every threshold of the weight its edges join the same rows as all edges do.
    """
    rows, ends = np.unique(np.concatenate([left, right]), return_inverse=True)
    order = np.argsort(-weight, kind="stable")
    a, b = ends[: len(left)][order], ends[len(left) :][order]
    label, taken = np.arange(len(rows)), np.zeros(len(order), bool)
    open_ = np.arange(len(order))
    while len(open_):
        one, other = label[a[open_]], label[b[open_]]
        apart = one != other
        open_, one, other = open_[apart], one[apart], other[apart]
        best = np.full(len(rows), len(order))
        np.minimum.at(best, one, open_)
        np.minimum.at(best, other, open_)
        taken[best[best < len(order)]] = True
        label = components(len(rows), a[taken], b[taken])
    return np.sort(order[taken])
