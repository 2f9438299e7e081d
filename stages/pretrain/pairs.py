"""Evaluation pairs from a Parquet table of image paths and captions."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from stages.pretrain.errors import DataError
from stages.pretrain.images import ImageSource, open_image


class PairTable:
    """Samples of a Parquet file with the columns `image` (path relative to the file's folder) and `caption`, and
    where classification is asked for a column of class names.

    Raises DataError where the file or a column is missing.
    """

    def __init__(self, path: str | Path, label_column: str | None = None) -> None:
        self.path = Path(path)
        wanted = ["image", "caption", *([label_column] if label_column else [])]
        try:
            table = pq.read_table(self.path)
        except FileNotFoundError as error:
            raise DataError(f"{self.path}: no such table of evaluation pairs") from error
        missing = [name for name in wanted if name not in table.column_names]
        if missing:
            raise DataError(f"{self.path}: column {missing[0]!r} is missing; it has {', '.join(table.column_names)}")
        self._images: list[str] = table["image"].to_pylist()
        self._captions: list[str] = table["caption"].to_pylist()
        self.labels: list[str] = table[label_column].to_pylist() if label_column else []

    def __len__(self) -> int:
        return len(self._images)

    def key(self, index: int) -> str:
        return self._images[index]

    def place(self, index: int) -> str:
        return f"{self.path} row {index}"

    def caption(self, index: int) -> str:
        return self._captions[index]

    def texts(self, index: int) -> list[str]:
        return [self._captions[index]]

    def kinds(self, index: int) -> list[str]:
        return ["caption"]

    def image(self, index: int) -> ImageSource:
        path = self.path.parent / self._images[index]
        return open_image(path.read_bytes(), path.suffix.lstrip(".").lower())
