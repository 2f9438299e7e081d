"""Normalised form of a web text: entities decoded, Unicode NFC, invisible characters removed, white space folded."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable

# Controls, soft hyphen, zero-width space, directional marks, word joiner, byte-order mark. The zero-width joiners U+200C
# and U+200D stay: Persian, Indic scripts and emoji sequences mean something by them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]"
)
_MAX_UNESCAPE = 3  # '&amp;amp;quot;': text escaped by several programs in turn


def normalize(text: str) -> str:
    """HTML entities decoded (up to three layers), NFC, invisible and control characters removed, white space folded to
    single spaces and stripped. Idempotent on its own output unless that spells an entity four layers deep.
    """
    if "&" in text:
        for _ in range(_MAX_UNESCAPE):
            decoded = html.unescape(text)
            if decoded == text:
                break
            text = decoded
    if not (text.isascii() and text.isprintable()):
        text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    return " ".join(text.split())


class NameMask:
    """Replaces person names from a list by one token.

    A name of letters with spaces between words (Latin, Cyrillic) matches whole words only; a name in Han script, which
    has no word boundaries, matches anywhere. Case matters: 'Rose' is a name, 'rose' a flower. Longest match first.
    """

    def __init__(self, names: Iterable[str], token: str):
        self.names = {normalize(name) for name in names} - {""}
        self.lengths = sorted({len(name) for name in self.names}, reverse=True)
        self.first = {name[0] for name in self.names}
        self.token = token

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Start and end (exclusive) of every name, left to right, not overlapping."""
        found, at = [], 0
        while at < len(text):
            end = self._match(text, at) if text[at] in self.first else 0
            if end:
                found.append((at, end))
            at = end or at + 1
        return found

    def _match(self, text: str, at: int) -> int:
        for length in self.lengths:
            piece = text[at : at + length]
            if len(piece) == length and piece in self.names and _is_whole(text, at, at + length):
                return at + length
        return 0

    def __call__(self, text: str) -> str:
        return replace_spans(text, self.spans(text), self.token)


def _is_han(character: str) -> bool:
    return "\u3400" <= character <= "\u9fff"


def _is_whole(text: str, start: int, end: int) -> bool:
    before = start == 0 or _is_han(text[start]) or not text[start - 1].isalnum()
    after = end == len(text) or _is_han(text[end - 1]) or not text[end].isalnum()
    return before and after


def replace_spans(text: str, spans: Iterable[tuple[int, int]], token: str) -> str:
    """The text with each span (start, end exclusive; any order, overlaps merged) replaced by the token."""
    pieces, last = [], 0
    for start, end in sorted(spans):
        if end <= last:
            continue
        if start >= last:
            pieces += [text[last:start], token]
        last = end
    return "".join(pieces) + text[last:]
