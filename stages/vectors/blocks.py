"""Stored embeddings of all parts as blocks of one size, and a seeded sample of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.errors import Fatal, RecipeError
from pipeline.stage import ColumnType, Evidence, Vector, VectorBlock

ROWS = 8192  # rows of a block: results that depend on the shape of a product are then the same for any size of part


@dataclass(frozen=True)
class Block:
    """`keys` (int64 [N]: part * 2^32 + row, rising over all blocks) and `vectors` [N, D] as stored (float16 or float32)."""

    keys: np.ndarray
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)


def check_vectors(instance: str, column: str, available: Mapping[str, ColumnType]) -> None:
    """Raises RecipeError where the column that a stage's option `embeddings` names holds no vectors."""
    kind = available.get(column)
    if kind is not None and not isinstance(kind, Vector):
        raise RecipeError(f"stages.{instance}.embeddings: {column!r} holds {kind}, not vectors; name image_emb of clip_score")


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows [N, D] as float32 of length 1 (rounding to float16 changes it a little); rows of zeros, or with a number that is not finite, are zeros."""
    wide = vectors.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        length = np.sqrt(np.einsum("ij,ij->i", wide, wide, dtype=np.float32))
        good = np.isfinite(length) & (length > 0)
        wide /= np.where(good, length, 1)[:, None]
    wide[~good] = 0
    return wide


def blocks(found: Iterable[VectorBlock], rows: int = ROWS) -> Iterator[Block]:
    """The parts' vectors cut anew into blocks of `rows` rows (the last may have fewer). Raises Fatal where the parts' vectors have different widths."""
    keys: list[np.ndarray] = []
    vectors: list[np.ndarray] = []
    held, width = 0, 0
    for one in found:
        width = width or one.vectors.shape[1]
        if one.vectors.shape[1] != width:
            raise Fatal(f"part {one.part} has embeddings of {one.vectors.shape[1]} numbers, the parts before it of {width}: they are of two models")
        keys.append((np.int64(one.part) << 32) + one.rows.astype(np.int64))
        vectors.append(one.vectors)
        held += len(one.rows)
        if held >= rows:
            all_keys, all_vectors = np.concatenate(keys), np.concatenate(vectors)
            full = held // rows * rows
            for start in range(0, full, rows):
                yield Block(all_keys[start : start + rows], all_vectors[start : start + rows])
            keys, vectors, held = [all_keys[full:]], [all_vectors[full:].copy()], held - full
    if held:
        yield Block(np.concatenate(keys), np.concatenate(vectors))


def draw(evidence: Evidence, column: str, count: int, seed: str) -> np.ndarray:
    """Vectors of about `count` rows, float32 [N, D] of length 1, in the order of the input; those of rows without a vector are missing.

    The rows with the least hashes of sample_id and seed: the same ones however the rows are cut into parts. Where few rows have a vector with a direction
    (zeros and numbers that are not finite have none) more are drawn.
    """
    order, enough = "md5_number(? || ':' || hex(sample_id))", count / 2
    while True:
        drawn = evidence.con.sql(
            f'SELECT part::BIGINT * 4294967296 + "row" AS key FROM rows ORDER BY {order}, part, "row" LIMIT ?', params=[seed, count]
        ).to_arrow_table()
        wanted = np.sort(drawn["key"].to_numpy())
        found = [block.vectors[np.isin(block.keys, wanted, assume_unique=True)] for block in blocks(evidence.vectors(column))]
        vectors = unit(np.concatenate(found)) if found else np.empty((0, 0), np.float32)
        vectors = vectors[vectors.any(axis=1)]
        if len(vectors) >= enough or len(wanted) < count:
            return vectors
        count *= 4
