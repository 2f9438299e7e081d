"""All pairs of distinct hashes within a Hamming distance, exactly and each once, in bounded memory.

Passes (`search_plan`) sort a key of some bits of every hash; pairs within a run of equal keys are checked by xor and popcount (`passes`). A pair that several
passes see belongs to the first of them. A run that holds a clump (hundreds of hashes that are nearly all near each other: placeholder pictures, plain
skies) is not listed pair by pair: the edges of its minimum spanning forest stand for it, which join the same hashes at every distance.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from stages.dups.pairs import TILE, Pairs, as_words, brute_pairs, join, spanning_forest
from stages.dups.passes import CLUMP_DEGREE, CLUMP_ROWS, Search
from stages.dups.search_plan import SearchPlan, make_plan


def near_pairs(
    hashes: np.ndarray, distance: int, *, threads: int | None = None, plan: SearchPlan | None = None, on_clump: Callable[[], None] = lambda: None
) -> Iterator[Pairs]:
    """Every pair of distinct hashes within `distance`, in chunks, each pair once; clumps by their spanning forest.

    hashes: uint64 [N] or uint8 [N, 8 or 32], no two equal, N below 2^31. Chunks come in a fixed order whatever the threads (None: cores at hand,
    at most 4). on_clump is called once where a forest stands for pairs. Memory: about 40 bytes a row and thread, and the pairs of one group of passes.
    Raises ValueError where two hashes are equal or the shape is wrong.
    """
    words = as_words(hashes)
    rows = words.shape[1]
    if rows < 2:
        return
    plan = plan or make_plan(rows, 64 * len(words), distance)
    workers = threads or max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))
    with ThreadPoolExecutor(workers) as pool:
        if plan.passes:
            search = Search(words, distance, plan.passes)
            yield from _in_order(pool, workers, search.in_group, range(len(search.groups)))
            if search.clumps:
                on_clump()
            yield search.of_clumps()
        else:
            some = 8 * TILE[0]
            look = lambda start: join(list(brute_pairs(words, distance, start, start + some)))  # noqa: E731
            yield from _all_or_forest(words, distance, _in_order(pool, workers, look, range(0, rows, some)), on_clump)


def _in_order(pool: ThreadPoolExecutor, workers: int, work: Callable[[int], Pairs], items: range) -> Iterator[Pairs]:
    """Results in the order of the items, with few of them waiting."""
    waiting = []
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > 2 * workers:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


def _all_or_forest(words: np.ndarray, distance: int, found: Iterator[Pairs], on_clump: Callable[[], None]) -> Iterator[Pairs]:
    """What brute force found, or the forest of all rows where that holds a clump."""
    listed, count, rows = [], 0, words.shape[1]
    for pairs in found:
        listed.append(pairs)
        count += len(pairs)
        if rows > CLUMP_ROWS and count > CLUMP_DEGREE / 2 * rows:
            on_clump()
            yield spanning_forest(words, distance)
            return
    yield from listed
