"""New embeddings beside those that clip_score stored."""

from __future__ import annotations

import numpy as np

from pipeline.errors import Fatal


def stored_cosine(stored: bytes | None, embedding: np.ndarray, where: str) -> float | None:
    """Cosine of an embedding as stored (the bytes of float16 [D]) and a new one of unit length [D], rounded to 1e-4; None where none is stored.

    Raises Fatal, beginning with `where`, for embeddings of different width: they are of different models.
    """
    if stored is None:
        return None
    unit = np.frombuffer(stored, np.float16).astype(np.float64)
    if len(unit) != len(embedding):
        raise Fatal(f"{where} gives embeddings of {len(embedding)} numbers, the stored ones have {len(unit)}; name the model of the clip_score stage")
    unit /= max(float(np.linalg.norm(unit)), 1e-12)  # rounding to float16 changed its length
    return round(float(unit @ embedding.astype(np.float64)), 4)
