"""The passes of one search for near hashes: rows are parted by some bits into buckets that fit the caches, and each bucket is sorted once a pass.

Passes that share the bits by which rows are parted (`Pass.lead`) are one group and share the parting. Within a bucket a pass sorts a key of its bits with the
row's place below; rows of equal keys stand together and are compared by xor and popcount.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np

from stages.dups.pairs import Pairs, brute_pairs, join, spanning_forest
from stages.dups.parting import BUCKET_ROWS, parted
from stages.dups.search_plan import Pass

CLUMP_ROWS = 256  # runs up to this long are always listed
CLUMP_DEGREE = 32  # a longer run is a clump where its hashes have more near ones than this on average
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd: distinct masked words rarely agree in the upper bits of their product
_DENSE = 8  # where one row in so many has a neighbour with the same key, all neighbours are compared
_Seen = tuple[Pairs, np.ndarray]  # pairs that a pass sees, and the xor of its word of the two (uint64)


class _Scratch:
    """Arrays that all sorts of one group use in turn: memory that is new each time costs more than what is done in it."""

    def __init__(self) -> None:
        self.numbers = np.empty(0, np.uint64)  # 0, 1, 2 ...

    def take(self, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """uint64, uint64 and bool of that many rows."""
        if size > len(self.numbers):
            self.numbers = np.arange(size + size // 4, dtype=np.uint64)
            self._arrays = [np.empty(len(self.numbers), kind) for kind in (np.uint64, np.uint64, bool)]
        one, other, flags = (array[:size] for array in self._arrays)
        return one, other, flags


class Search:
    """One search: the hashes uint64 [words, N], the passes, and the clumps found so far."""

    def __init__(self, words: np.ndarray, distance: int, passes: tuple[Pass, ...]):
        self.words, self.distance, self.passes = words, distance, passes
        self.rows = words.shape[1]
        self.groups = [list(group) for _, group in groupby(range(len(passes)), key=lambda nth: (passes[nth].word, passes[nth].lead))]
        self.parts: dict[tuple[int, int, int], int] = {}  # word, part and errors -> its first pass
        for nth, one in enumerate(passes):
            self.parts.setdefault((one.word, one.part, one.errors), nth)
        self.clumps: dict[int, list[tuple[np.ndarray, Pairs]]] = {}  # pass -> the masked words of each clump's run, its forest

    def in_group(self, group: int) -> Pairs:
        """The pairs that belong to the passes of a group, but those inside clumps."""
        passes, scratch = self.groups[group], _Scratch()
        seen: dict[int, list[_Seen]] = {nth: [] for nth in passes}
        for rows, words in self._buckets(self.passes[passes[0]]):
            for nth in passes:
                seen[nth] += self._in_bucket(nth, rows, words, scratch)
        return join([self._own(nth, seen.pop(nth)) for nth in passes])

    def _buckets(self, one: Pass) -> Iterator[tuple[np.ndarray | None, np.ndarray]]:
        """(rows [n], None for all of them in order; their word uint64 [n]) of each bucket of the group that begins with pass `one`."""
        word = self.words[one.word]
        bits = min(one.lead.bit_count(), 16, (self.rows // BUCKET_ROWS).bit_length())
        return parted(word, one.lead.bit_length() - bits, bits) if bits else iter([(None, word)])

    def _in_bucket(self, nth: int, rows: np.ndarray | None, words: np.ndarray, scratch: _Scratch) -> list[_Seen]:
        """Pairs within the distance that pass `nth` sees in one bucket, those of a clump left out; they may belong to an earlier pass."""
        size, low = len(words), np.uint64((1 << (len(words) - 1).bit_length()) - 1)
        key, apart, same = scratch.take(size)
        np.bitwise_and(words, np.uint64(self.passes[nth].mask), out=key)
        key *= _MULTIPLIER
        key &= ~low
        key |= scratch.numbers[:size]
        key.sort()
        np.bitwise_xor(key[1:], key[:-1], out=apart[:-1])
        np.less_equal(apart[:-1], low, out=same[:-1])  # the next row in order has the same key
        same[-1] = False
        at = np.flatnonzero(same)
        if not len(at):
            return []
        key &= low
        place = key.view(np.int64)
        runs = np.flatnonzero(np.diff(at, prepend=-2) != 1)
        starts, lengths = at[runs], np.diff(runs, append=len(at)) + 1
        long = lengths > CLUMP_ROWS
        found: list[_Seen] = []
        if long.any():
            at = at[~np.repeat(long, lengths - 1)]
            for start, length in zip(starts[long].tolist(), lengths[long].tolist(), strict=True):
                run = place[start : start + length]
                found.append(self._in_run(nth, np.sort(run if rows is None else rows[run]).astype(np.int64)))
        one, step = self.passes[nth], 1
        if len(at) > size // _DENSE:  # many neighbours: words in the order of the keys are compared without looking up places
            alive, ordered = np.zeros(size, bool), words[place]  # alive: the row `step` places on has the same key
            alive[at] = True
            while np.count_nonzero(alive) > size // _DENSE:
                xor = np.bitwise_xor(ordered[step:], ordered[:-step], out=apart[:-step])
                near = np.flatnonzero((np.bitwise_count(xor & np.uint64(one.part)) <= one.errors) & alive[:-step])
                found.append(self._near(one, rows, place[near], place[near + step], xor[near]))
                alive[:-step] &= same[step:]
                alive[-step:] = False
                step += 1
            at = np.flatnonzero(alive)
        if len(at):  # all further pairs at once
            last = np.flatnonzero(~same)
            more = last[np.searchsorted(last, at)] - at - step + 1
            left = np.repeat(at, more)
            right = np.arange(len(left)) + np.repeat(at + step - (np.cumsum(more) - more), more)
            left, right = place[left], place[right]
            xor = words[left] ^ words[right]
            near = np.flatnonzero(np.bitwise_count(xor & np.uint64(one.part)) <= one.errors)
            found.append(self._near(one, rows, left[near], right[near], xor[near]))
        return [some for some in found if len(some[0])]

    def _near(self, one: Pass, rows: np.ndarray | None, left: np.ndarray, right: np.ndarray, xor: np.ndarray) -> _Seen:
        """Those of the candidates (places in the bucket, few enough errors in the pass's part) that are within the distance, as rows."""
        if rows is not None:
            left, right = rows[left].astype(np.int64), rows[right].astype(np.int64)
        total = np.bitwise_count(xor).astype(np.uint16)
        for other, word in enumerate(self.words):
            if other != one.word:
                total += np.bitwise_count(word[left] ^ word[right])
        pairs = Pairs(np.minimum(left, right), np.maximum(left, right), total.astype(np.uint8))
        if total.max(initial=0) <= self.distance:
            return pairs, xor
        near = np.flatnonzero(total <= self.distance)
        return pairs.take(near), xor[near]

    def _own(self, nth: int, seen: list[_Seen]) -> Pairs:
        """Those that no earlier pass sees, but this one (keys of unequal bits may be equal).

        What has few enough errors in an earlier part, a pass over that part has seen.
        """
        pairs, one = join([some for some, _ in seen]), self.passes[nth]
        xor = {one.word: np.concatenate([np.empty(0, np.uint64), *(some for _, some in seen)])}
        keep = self._sees(nth, xor)
        first = self.parts[one.word, one.part, one.errors]
        for (word, part, errors), begins in self.parts.items():
            if begins < first:
                if word not in xor:
                    xor[word] = self.words[word][pairs.left] ^ self.words[word][pairs.right]
                keep &= np.bitwise_count(xor[word] & np.uint64(part)) > errors
        for earlier in range(first, nth):  # over the same part: only the bits they look at differ
            if (earlier - first) % 4 == 0:
                kept = np.flatnonzero(keep)
                if not len(kept):
                    break
                pairs, xor, keep = pairs.take(kept), {one.word: xor[one.word][kept]}, np.ones(len(kept), bool)
            keep &= (xor[one.word] & np.uint64(self.passes[earlier].mask)) != 0
        return pairs.take(np.flatnonzero(keep))

    def _sees(self, nth: int, xor: dict[int, np.ndarray]) -> np.ndarray:
        """Which pairs, given by the xor of their words, a pass counts as its own."""
        one = self.passes[nth]
        agree: np.ndarray = (xor[one.word] & np.uint64(one.mask)) == 0
        return agree if one.errors >= self.distance else agree & (np.bitwise_count(xor[one.word] & np.uint64(one.part)) <= one.errors)

    def _in_run(self, nth: int, run: np.ndarray) -> _Seen:
        """The pairs of a long run (rows, rising), or none of them where it is a clump: then its forest is kept."""
        words = np.ascontiguousarray(self.words[:, run])
        found: list[Pairs] = []
        listed = 0
        for pairs in brute_pairs(words, self.distance):
            listed += len(pairs)
            if listed > CLUMP_DEGREE / 2 * len(run):
                forest = spanning_forest(words, self.distance)
                one = self.passes[nth]
                keys = np.unique(words[one.word] & np.uint64(one.mask))
                self.clumps.setdefault(nth, []).append((keys, Pairs(run[forest.left], run[forest.right], forest.distance)))
                return join([]), np.empty(0, np.uint64)
            found.append(Pairs(run[pairs.left], run[pairs.right], pairs.distance))
        listing, word = join(found), self.words[self.passes[nth].word]
        return listing, word[listing.left] ^ word[listing.right]

    def of_clumps(self) -> Pairs:
        """The edges of all forests, each once, but those that a pass has listed."""
        everything = join([forest for nth in sorted(self.clumps) for _, forest in self.clumps[nth]])
        if not len(everything):
            return everything
        _, once = np.unique(everything.left * self.rows + everything.right, return_index=True)
        edges = everything.take(once)
        xor = {nth: word[edges.left] ^ word[edges.right] for nth, word in enumerate(self.words)}
        listed, open_ = np.zeros(len(edges), bool), np.ones(len(edges), bool)
        for nth, one in enumerate(self.passes):
            mine = open_ & self._sees(nth, xor)
            keys = self.words[one.word][edges.left[mine]] & np.uint64(one.mask)
            listed[mine] = ~np.isin(keys, np.concatenate([np.empty(0, np.uint64), *(of_run for of_run, _ in self.clumps.get(nth, []))]))
            open_ &= ~mine
        return edges.take(~listed)
