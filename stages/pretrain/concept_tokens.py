"""Concepts of a text at its tokens: character spans, as stored, mapped by the tokenizer's offsets when a sample is loaded (ConceptCLIP, Nie et al. 2025).

The dataset holds characters, which no choice of tokenizer makes wrong. ConceptCLIP's released files hold characters too, while its loss reads token
positions, and nothing released maps the one to the other: hence this map and its test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Offsets = Sequence[tuple[int, int]]


def token_spans(spans: Iterable[tuple[int, int]], offsets: Offsets, first: int = 0) -> list[tuple[int, int] | None]:
    """Spans of tokens (start, end excluded) for spans of characters; None for one that is not wholly among the tokens, as when the text was cut.

    `offsets`: (start, end) characters of each token that the model is given, in order, special tokens left out; `first`: place of the first of them in the
    model's input (1 behind a start token). A span takes every token that overlaps it.
    """
    found: list[tuple[int, int] | None] = []
    last = max((end for _, end in offsets), default=0)
    for start, end in spans:
        inside = [place for place, (a, b) in enumerate(offsets) if a < end and b > start]
        found.append((inside[0] + first, inside[-1] + 1 + first) if inside and end <= last else None)
    return found


def concept_tokens(tokenizer: Any, text: str, spans: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    """(id, first token, token after the last) of each concept of a text whose tokens are all in the model's input; others are dropped.

    `tokenizer`: stages.models.tokenize.CachedTokenizer, or a fast tokenizer of transformers. Places count from the start token, 0.
    """
    offsets, first = token_offsets(tokenizer, text)
    mapped = token_spans([(span["start_char"], span["end_char"]) for span in spans], offsets, first)
    return [(span["id"], *place) for span, place in zip(spans, mapped, strict=True) if place is not None]


def token_offsets(tokenizer: Any, text: str) -> tuple[list[tuple[int, int]], int]:
    """(characters of the text that each token stands for, place of the first of these tokens in the model's input)."""
    if hasattr(tokenizer, "offsets"):
        return tokenizer.offsets(text), 1
    fast = getattr(tokenizer, "tokenizer", tokenizer)
    length = getattr(tokenizer, "context_length", None)
    found = fast(text, return_offsets_mapping=True, return_special_tokens_mask=True, truncation=length is not None, max_length=length)
    own = [nth for nth, special in enumerate(found["special_tokens_mask"]) if not special]
    return [tuple(found["offset_mapping"][nth]) for nth in own], own[0] if own else 0
