"""A stage for tests that need stored embeddings without a model: vectors follow from the row's text."""

from __future__ import annotations

import hashlib

import numpy as np

from pipeline.stage import Stage, Vector


class TextEmbedding(Stage):
    """image_emb: one of few directions, by the first word of the text, and a little of its own."""

    name = "text_embedding"
    reads = ("alt_text",)
    writes = {"image_emb": Vector("float16")}

    def compute(self, rows, ctx):
        return [{"image_emb": self.vector(row["alt_text"])} for row in rows]

    @staticmethod
    def vector(text: str) -> np.ndarray:
        def drawn(seed: str) -> np.ndarray:
            return np.random.default_rng(int.from_bytes(hashlib.md5(seed.encode()).digest()[:8], "little")).standard_normal(16)

        return (drawn(text.split()[0]) + 0.05 * drawn(text)).astype(np.float16)
