"""Spans of concepts as a row's column `concepts` holds them: which of them belong to a text. For the stage that writes them and the trainer that reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any


def text_digest(text: str) -> str:
    """By what spans of a text are found again, whatever becomes of the order of a row's texts: 16 hex digits of its SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def spans_of(concepts: Sequence[Mapping[str, Any]], text: str) -> list[Mapping[str, Any]]:
    """Spans {id, score, start_char, end_char} of one text from a row's column `concepts`; [] where it has none."""
    wanted = text_digest(text)
    return next((list(entry["spans"]) for entry in concepts if entry["text"] == wanted), [])
