"""Texts and their embeddings in a Parquet file, read in blocks."""

from __future__ import annotations

from collections.abc import Iterator

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import Fatal
from stages.vectors.blocks import ROWS, unit


class TextVectors:
    """Columns `text` and `embedding` (lists of equally many numbers, or fixed-size binary of float16). Raises Fatal where the file is not so."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with fsspec.open(path, "rb") as file:
                self.texts = pq.read_table(file, columns=["text"])["text"].combine_chunks().cast(pa.large_string())
        except (OSError, ValueError, pa.ArrowException, KeyError) as error:
            raise Fatal(f"{path}: cannot be read as texts with embeddings: {error}; give a Parquet file with the columns text and embedding") from error
        if not len(self.texts):
            raise Fatal(f"{path}: has no texts")

    def __len__(self) -> int:
        return len(self.texts)

    def of(self, places: np.ndarray) -> pa.Array:
        """Some texts."""
        return self.texts.take(pa.array(places)).cast(pa.string())

    def blocks(self) -> Iterator[np.ndarray]:
        """All embeddings, float32 [n, D] of length 1, in the order of the file."""
        with fsspec.open(self.path, "rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(ROWS, columns=["embedding"]):
                yield unit(self._numbers(batch.column(0)))

    def sample(self, count: int, seed: int) -> np.ndarray:
        """Embeddings of `count` texts drawn by a seed (all, where there are fewer), without those of zeros."""
        total = len(self)
        drawn = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False))
        found, start = [], 0
        for block in self.blocks():
            own = drawn[np.searchsorted(drawn, start) : np.searchsorted(drawn, start + len(block))] - start
            found.append(block[own])
            start += len(block)
        vectors = np.concatenate(found)
        vectors = vectors[vectors.any(axis=1)]
        if not len(vectors):
            raise Fatal(f"{self.path}: the embeddings are all zeros")
        return vectors

    def _numbers(self, column: pa.Array) -> np.ndarray:
        kind, rows = column.type, len(column)
        if pa.types.is_fixed_size_binary(kind) and not column.null_count:
            return np.frombuffer(column.buffers()[1], np.float16)[column.offset * kind.byte_width // 2 :][: rows * kind.byte_width // 2].reshape(rows, -1)
        listed = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)
        values = column.flatten() if listed and not column.null_count else pa.array([])
        if not len(values) or len(values) % rows or not (pa.types.is_floating(values.type)) or len(set(column.value_lengths().to_pylist())) > 1:
            raise Fatal(f"{self.path}: the column embedding holds {kind}; give each text equally many numbers")
        return values.to_numpy(zero_copy_only=False).reshape(rows, -1)
