"""All pairs of distinct hashes within a Hamming distance, exactly and each once, in bounded memory.

Passes (`search_plan`) sort a key of some bits of every hash; pairs within a run of equal keys are checked by xor and popcount. A pair that several
passes see belongs to the first of them. A run that holds a clump (hundreds of hashes that are nearly all near each other: placeholder pictures, plain
skies) is not listed pair by pair: the edges of its minimum spanning forest stand for it, which join the same hashes at every distance.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from stages.dups.search_plan import Pass, SearchPlan, make_plan

CLUMP_ROWS = 256  # runs up to this long are always listed
CLUMP_DEGREE = 32  # a longer run is a clump where its hashes have more near ones than this on average
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd: distinct masked words rarely agree in the upper bits of their product
_CHECKED = 1 << 20  # candidates checked together
_TILE = (16, 4096)


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows: left < right (int64 [N]) and their distance (uint8 [N])."""

    left: np.ndarray
    right: np.ndarray
    distance: np.ndarray

    def __len__(self) -> int:
        return len(self.left)

    def take(self, which: np.ndarray) -> Pairs:
        return Pairs(self.left[which], self.right[which], self.distance[which])


def join(pairs: Sequence[Pairs]) -> Pairs:
    """Several as one."""
    if not pairs:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))
    return Pairs(*(np.concatenate([getattr(some, name) for some in pairs]) for name in ("left", "right", "distance")))


def as_words(hashes: np.ndarray) -> np.ndarray:
    """Hashes as the columns of a uint64 array [words, N] from uint64 [N] or uint8 [N, 8 or 32]. Raises ValueError for other shapes."""
    if hashes.dtype == np.uint8 and hashes.ndim == 2 and hashes.shape[1] in (8, 32):
        hashes = np.ascontiguousarray(hashes).view(np.uint64)
    elif hashes.dtype == np.uint64 and hashes.ndim == 1:
        hashes = hashes[:, None]
    else:
        raise ValueError(f"hashes must be uint64 [N] or uint8 [N, 8 or 32], not {hashes.dtype} {list(hashes.shape)}")
    return np.ascontiguousarray(hashes.T)


def distances(words: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Distance (uint16 [K]) between columns `left` and `right` [K] of hashes [words, N]."""
    total = np.zeros(len(left), np.uint16)
    for word in words:
        total += np.bitwise_count(word[left] ^ word[right])
    return total


def near_pairs(
    hashes: np.ndarray, distance: int, *, threads: int | None = None, plan: SearchPlan | None = None, on_clump: Callable[[], None] = lambda: None
) -> Iterator[Pairs]:
    """Every pair of distinct hashes within `distance`, in chunks, each pair once; clumps by their spanning forest.

    hashes: uint64 [N] or uint8 [N, 8 or 32], no two equal, N below 2^31. Chunks come in a fixed order whatever the threads (None: cores at hand,
    at most 4). on_clump is called once where a forest stands for pairs. Memory: about 80 bytes a row and thread, and the pairs of one pass.
    Raises ValueError where two hashes are equal or the shape is wrong.
    """
    words = as_words(hashes)
    rows = words.shape[1]
    if rows < 2:
        return
    plan = plan or make_plan(rows, 64 * len(words), distance)
    search = _Search(words, distance, plan.passes)
    workers = threads or max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))
    with ThreadPoolExecutor(workers) as pool:
        if plan.passes:
            yield from _in_order(pool, workers, search.in_pass, range(len(plan.passes)))
            if search._clumps:
                on_clump()
            yield search.of_clumps()
        else:
            yield from _all_or_forest(words, distance, _in_order(pool, workers, search.in_rows, range(0, rows, 8 * _TILE[0])), on_clump)


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


class _Search:
    """One search: the hashes, the passes, and the clumps found so far."""

    def __init__(self, words: np.ndarray, distance: int, passes: tuple[Pass, ...]):
        self.words, self.distance, self.passes = words, distance, passes
        self.rows = words.shape[1]
        self.index_bits = np.uint64(max(1, int(self.rows - 1).bit_length()))
        self.low = np.uint64((1 << int(self.index_bits)) - 1)
        self._clumps: dict[int, dict[int, Pairs]] = {}  # pass -> key -> forest

    def keys(self, nth: int, rows: np.ndarray | None = None) -> np.ndarray:
        """Mixed key bits of a pass, above room for the row's number."""
        one = self.passes[nth]
        word = self.words[one.word] if rows is None else self.words[one.word][rows]
        key = word & np.uint64(one.mask)
        key *= _MULTIPLIER
        key &= ~self.low
        return key

    def in_pass(self, nth: int) -> Pairs:
        """The pairs of which this is the first pass, but those inside clumps."""
        key = self.keys(nth)
        key |= np.arange(self.rows, dtype=np.uint64)
        key.sort()
        same = np.empty(self.rows, bool)  # the next row in order has the same key
        np.less_equal(key[1:] ^ key[:-1], self.low, out=same[:-1])
        same[-1] = False
        at = np.flatnonzero(same)
        if not len(at):
            return join([])
        order = key  # from here on only the rows' numbers are needed
        runs = np.flatnonzero(np.diff(at, prepend=-2) != 1)
        starts, lengths = at[runs], np.diff(runs, append=len(at)) + 1
        long = lengths > CLUMP_ROWS
        found = []
        if long.any():
            at = at[~np.repeat(long, lengths - 1)]
            for start, length in zip(starts[long].tolist(), lengths[long].tolist(), strict=True):
                run = np.sort((order[start : start + length] & self.low).astype(np.int64))
                found.append(self._in_run(nth, run))
        step = 1
        while len(at):
            for some in range(0, len(at), _CHECKED):
                here = at[some : some + _CHECKED]
                found.append(self._check(nth, (order[here] & self.low).astype(np.int64), (order[here + step] & self.low).astype(np.int64)))
            at = at[same[at + step]]
            step += 1
        return join([pairs for pairs in found if len(pairs)])

    def _check(self, nth: int, left: np.ndarray, right: np.ndarray) -> Pairs:
        """Those of the candidates that are near and belong to the pass."""
        first = self.passes[nth].word
        total = np.zeros(len(left), np.uint16)
        for word in (self.words[first], *self.words[:first], *self.words[first + 1 :]):
            total += np.bitwise_count(word[left] ^ word[right])
            near = np.flatnonzero(total <= self.distance)
            if len(near) < len(left):
                left, right, total = left[near], right[near], total[near]
        return self._own(nth, Pairs(np.minimum(left, right), np.maximum(left, right), total.astype(np.uint8)))

    def _own(self, nth: int, pairs: Pairs) -> Pairs:
        """Those that agree in no earlier pass, and in this one (keys of unequal bits may be equal)."""
        if not len(pairs):
            return pairs
        pairs = pairs.take(self._agree(nth, pairs))
        for earlier in range(nth):
            if not len(pairs):
                break
            pairs = pairs.take(~self._agree(earlier, pairs))
        return pairs

    def _agree(self, nth: int, pairs: Pairs) -> np.ndarray:
        word, mask = self.words[self.passes[nth].word], np.uint64(self.passes[nth].mask)
        return (word[pairs.left] ^ word[pairs.right]) & mask == 0

    def _in_run(self, nth: int, run: np.ndarray) -> Pairs:
        """The pairs of a long run, or none of them where it is a clump: then its forest is kept."""
        words = np.ascontiguousarray(self.words[:, run])
        found: list[Pairs] = []
        listed = 0
        for pairs in brute_pairs(words, self.distance):
            listed += len(pairs)
            if listed > CLUMP_DEGREE / 2 * len(run):
                forest = spanning_forest(words, self.distance)
                key = int(self.keys(nth, run[:1])[0])
                self._clumps.setdefault(nth, {})[key] = Pairs(run[forest.left], run[forest.right], forest.distance)
                return join([])
            found.append(self._own(nth, Pairs(run[pairs.left], run[pairs.right], pairs.distance)))
        return join(found)

    def of_clumps(self) -> Pairs:
        """The edges of all forests, each once, but those that a pass has listed."""
        everything = join([self._clumps[nth][key] for nth in sorted(self._clumps) for key in sorted(self._clumps[nth])])
        if not len(everything):
            return everything
        _, once = np.unique(everything.left * self.rows + everything.right, return_index=True)
        edges = everything.take(once)
        listed = np.zeros(len(edges), bool)
        open_ = np.arange(len(edges))
        for nth in range(len(self.passes)):
            mine = self._agree(nth, edges.take(open_))
            keys = self.keys(nth, edges.left[open_[mine]])
            listed[open_[mine]] = ~np.isin(keys, np.fromiter(self._clumps.get(nth, {}), np.uint64))
            open_ = open_[~mine]
        return edges.take(~listed)

    def in_rows(self, start: int) -> Pairs:
        """Brute force: the pairs whose left row is one of some beginning at `start`."""
        return join(list(brute_pairs(self.words, self.distance, start, start + 8 * _TILE[0])))


def brute_pairs(words: np.ndarray, distance: int, start: int = 0, stop: int | None = None) -> Iterator[Pairs]:
    """Pairs within `distance` of hashes [words, N] whose left row is start <= row < stop, by looking at each; in tiles that fit the caches."""
    rows = words.shape[1]
    stop = rows if stop is None else min(stop, rows)
    tall, wide = _TILE
    bits, count = np.empty(tall * wide, np.uint64), np.empty(tall * wide, np.uint8)
    total = np.empty(tall * wide, np.uint16)
    for top in range(start, stop, tall):
        bottom = min(top + tall, stop)
        for west in range(top, rows, wide):
            east = min(west + wide, rows)
            shape = (bottom - top, east - west)
            size = shape[0] * shape[1]
            xor, ones, near = bits[:size].reshape(shape), count[:size].reshape(shape), total[:size].reshape(shape)
            for nth, word in enumerate(words):
                np.bitwise_xor(word[top:bottom, None], word[None, west:east], out=xor)
                np.bitwise_count(xor, out=ones)
                if len(words) > 1:
                    np.add(near, ones, out=near) if nth else np.copyto(near, ones)
            measured = near if len(words) > 1 else ones
            hit = np.flatnonzero(measured.reshape(-1) <= distance)
            if not len(hit):
                continue
            left, right = hit // shape[1] + top, hit % shape[1] + west
            keep = left < right
            if keep.any():
                yield Pairs(left[keep], right[keep], measured.reshape(-1)[hit[keep]].astype(np.uint8))


def spanning_forest(words: np.ndarray, distance: int) -> Pairs:
    """Minimum spanning forest of hashes [words, N] over the links within `distance` (Prim): at most N - 1 edges, the same ones each time.

    At every threshold up to `distance` its edges join the same rows as all pairs do. Time grows with N^2, memory with N.
    """
    rows = words.shape[1]
    rest, others = np.arange(1, rows), words[:, 1:].copy()  # rows that are not in the tree yet stand first, and their hashes
    reach, via = distances(words, np.zeros(rows - 1, np.int64), rest), np.zeros(rows - 1, np.int64)  # to the tree: distance, and its nearest row
    edges = np.empty((rows - 1, 3), np.int64)
    for left in range(rows - 1, 0, -1):
        place = int(np.argmin(reach[:left]))
        row, last = int(rest[place]), left - 1
        edges[last] = via[place], row, reach[place]
        for array in (rest, reach, via):
            array[place] = array[last]
        others[:, place] = others[:, last]
        ahead = np.zeros(last, np.uint16)
        for word, mine in zip(others, words[:, row], strict=True):
            ahead += np.bitwise_count(word[:last] ^ mine)
        nearer = np.flatnonzero(ahead < reach[:last])
        reach[nearer], via[nearer] = ahead[nearer], row
    edges = edges[edges[:, 2] <= distance]
    ends = np.sort(edges[:, :2], axis=1)
    return Pairs(ends[:, 0], ends[:, 1], edges[:, 2].astype(np.uint8))
