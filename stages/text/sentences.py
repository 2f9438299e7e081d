"""Sentences of a caption: a splitter that knows abbreviations and decimals, and DreamLIP's plain one for fidelity.

DreamLIP (Zheng et al. 2024, released loader) splits at newline, `</s>` and every full stop, which breaks '3.5 m' and 'St. Paul'.
"""

from __future__ import annotations

import re
from typing import Final, Literal

SplitMode = Literal["sentences", "fidelity"]

_ABBREVIATIONS: Final = frozenset(
    "mr mrs ms dr prof st mt ft jr sr no vs etc e.g i.e a.m p.m u.s u.k approx ca fig vol dept inc ltd co corp ave blvd rd gen col capt sgt rev hon".split()
)
_LINE = re.compile(r"\n|</s>")
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s+|$)|[。！？]")
_LAST_WORD = re.compile(r"[^\s(\[\"“]*$")
_FIDELITY = re.compile(r"\n|</s>|\.")


def split_sentences(text: str, mode: SplitMode = "sentences") -> list[str]:
    """Stripped sentences in their order, empty ones left out.

    sentences: at line ends, `</s>` and the marks that end a sentence, which stay with it; not behind an abbreviation, a single
    capital letter or inside a number. fidelity: as DreamLIP's released loader, at newline, `</s>` and every full stop, without the stops.
    """
    if mode == "fidelity":
        return [piece for part in _FIDELITY.split(text) if (piece := part.strip())]
    return [sentence for line in _LINE.split(text) for sentence in _of_line(line)]


def _of_line(line: str) -> list[str]:
    sentences, start = [], 0
    for match in _END.finditer(line):
        if not (match[0] == "." and _is_abbreviation(line[start : match.start()], line[match.end() :])):
            sentences.append(line[start : match.end()].strip())
            start = match.end()
    return [sentence for sentence in (*sentences, line[start:].strip()) if any(map(str.isalnum, sentence))]


def _is_abbreviation(before: str, behind: str) -> bool:
    """Whether a full stop after `before` belongs to an abbreviation: a known one, or an initial such as the J of 'J. Smith'."""
    match = _LAST_WORD.search(before)
    word = match[0] if match else ""
    if not behind.strip():
        return False
    following = behind.lstrip()[0]
    if word.casefold() in _ABBREVIATIONS:  # 'at 5 p.m. The' ends a sentence, 'Dr. Smith' does not
        return not following.isupper() or word[:1].isupper()
    return len(word) == 1 and word.isupper()
