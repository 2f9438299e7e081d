"""A stage that stores a vector and a list of texts per row, as clip_score does, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from pipeline.stage import Context, Row, Stage, Values, Vector
from schemas.outcome import Failure
from schemas.sample import TEXTS


class ToyVectors(Stage):
    """The first bytes of the image's digest as a vector, and the row's texts once more."""

    name: ClassVar[str] = "toy_vectors"
    reads = ("raw_sha256", "texts|text|alt_text")
    writes = {"image_emb": Vector("float16"), "texts": TEXTS}

    def compute(self, rows: Sequence[Row], ctx: Context) -> list[Values | Failure]:
        return [{"image_emb": np.frombuffer(row["raw_sha256"][:16], np.uint8).astype(np.float16), "texts": row["texts"]} for row in rows]
