"""near_dup over whole columns: the pairs of all hashes, found once, and those among the rows that live."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.reason_columns import is_null, is_true
from stages.dups.hamming import near_pairs
from stages.dups.pairs import Pairs, join
from stages.dups.parting import distinct_places
from stages.dups.passes import CLUMP_DEGREE


def fixed_bytes(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """A binary column without nulls, each value `width` bytes, as uint8 [N, width]."""
    whole = column.cast(pa.binary(width)).combine_chunks()
    arrays = whole.chunks if isinstance(whole, pa.ChunkedArray) else [whole]
    pieces = [np.frombuffer(one.buffers()[1], np.uint8)[one.offset * width : (one.offset + len(one)) * width] for one in arrays if len(one)]
    return np.concatenate(pieces or [np.empty(0, np.uint8)]).reshape(-1, width)


def all_pairs(hashes: pa.Array, quality: pa.Array, turned: pa.Array, least: int, width: int, distance: int) -> dict[str, np.ndarray]:
    """The pairs of distinct hashes (`left`, `right`, `distance`) among all rows with a hash and enough to see; `rows` (rising) that have a hash of some pair,
    and `ids`, the number of it.

    `usable` is [0] and the rest empty where pairs of some rows do not follow from those of all: with turned copies, and where a clump is stored by a forest.
    """
    rows = np.flatnonzero(is_true(pc.greater_equal(quality, least)) & ~is_null(hashes))
    turns = not pa.types.is_null(turned.type) and (pc.max(pc.binary_length(turned)).as_py() or 0) > 0
    clumps: list[int] = []
    ids, count = np.empty(0, np.int64), 0
    pairs = join([])
    if len(rows) and not turns:
        raw = fixed_bytes(pa.chunked_array([hashes.take(pa.array(rows))]), width)
        if width == 8:
            unique, ids = distinct_places(raw.view(np.uint64)[:, 0])
        else:
            values, ids = np.unique(raw.view(f"V{width}")[:, 0], return_inverse=True)
            unique = values.view(np.uint8).reshape(-1, width)
        count = len(unique)
        pairs = join(list(near_pairs(unique, distance, on_clump=lambda: clumps.append(1))))
    usable = not turns and not clumps
    paired, ends = np.unique(np.concatenate([pairs.left, pairs.right]), return_inverse=True)  # most hashes have no pair
    place = np.full(count, -1, np.int32)
    place[paired] = np.arange(len(paired))
    has = place[ids] >= 0
    empty = slice(None) if usable else slice(0, 0)
    found = {"rows": rows[has], "ids": place[ids[has]], "left": ends[: len(pairs)], "right": ends[len(pairs) :], "distance": pairs.distance}
    numbers = {name: found[name].astype(np.int32) for name in ("ids", "left", "right")}
    return {"usable": np.array([usable], np.uint8), **{name: array[empty] for name, array in (found | numbers).items()}}


def living_pairs(index: dict[str, np.ndarray], alive: np.ndarray) -> Pairs | None:
    """Pairs of rows of the run, each the first living one of its hash, in their order. alive: bool [N].

    None where a search among the living rows might store a clump by its forest: that may choose other links.
    """
    if not index["usable"][0]:
        return None
    lives = alive[index["rows"]]
    rows, ids = index["rows"][lives], index["ids"][lives]
    count = int(index["ids"].max()) + 1 if len(index["ids"]) else 0
    first = np.full(count, -1, np.int64)
    first[ids[::-1]] = rows[::-1]
    a, b = first[index["left"]], first[index["right"]]
    both = (a >= 0) & (b >= 0)
    a, b, distance = a[both], b[both], index["distance"][both]
    if _may_clump(index["left"][both], index["right"][both], count):
        return None
    left, right = np.minimum(a, b), np.maximum(a, b)
    order = np.argsort(left << 32 | right)
    return Pairs(left[order], right[order], distance[order])


def _may_clump(left: np.ndarray, right: np.ndarray, count: int) -> bool:
    """Whether some hashes are near to more than CLUMP_DEGREE others on average: then, with all hashes of lower degree than half of that
    taken away again and again, one with more than CLUMP_DEGREE is left."""
    while len(left):
        degree = np.bincount(left, minlength=count) + np.bincount(right, minlength=count)
        if degree.max() <= CLUMP_DEGREE:
            return False
        stays = (degree[left] > CLUMP_DEGREE // 2) & (degree[right] > CLUMP_DEGREE // 2)
        if stays.all():
            return True
        left, right = left[stays], right[stays]
    return False


def near_column(hashes: pa.Array, eligible: np.ndarray, pairs: Pairs, starts: np.ndarray, within: int, kind: pa.StructType) -> pa.Array:
    """The column `near_evidence` [N]: null for rows that are not `eligible` (bool [N]); `pairs` in the order of their left rows, `starts` int64 [parts + 1]."""
    rows = len(hashes)
    counts = np.bincount(pairs.left, minlength=rows)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    part = np.searchsorted(starts, pairs.right, "right") - 1
    columns = [part.astype(np.int32), (pairs.right - starts[part]).astype(np.int32), pairs.distance.astype(np.int16)]
    item = kind.field("pairs").type.value_type
    values = pa.StructArray.from_arrays([pa.array(column) for column in columns], fields=list(item))
    lists = pa.ListArray.from_arrays(pa.array(offsets), values, type=kind.field("pairs").type, mask=pa.array(counts == 0))
    children = [hashes, pa.nulls(rows, pa.binary()), pa.array(np.full(rows, within, np.int16)), lists]
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=pa.array(~eligible))
