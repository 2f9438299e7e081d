"""Text from outside, made fit to stand in a prompt as data."""

from __future__ import annotations

import re
import unicodedata

MAX_CHARS = 2000
_MARK = re.compile(r"<\s*(/?)\s*text\s*>", re.IGNORECASE)
_INVISIBLE = frozenset({"Cf", "Cc", "Cs", "Co", "Cn", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # words of some scripts are misspelt without them


def as_data(text: str, max_chars: int = MAX_CHARS) -> str:
    """`text` on one line, at most `max_chars` characters, without what could close the marks <text> and </text> around it.

    Line breaks, control characters and marks that turn the writing direction become spaces or go; joiners within words stay. A
    cut text ends in ' ...'. A mark in the text is written with round brackets, also where it is spelt in compatibility forms.
    """
    shown = []
    for character in text[: 4 * max_chars]:
        if unicodedata.category(character) in _INVISIBLE and character not in _JOINERS:
            shown.append(" " if character.isspace() else "")
        else:
            shown.append(character)
    line = " ".join("".join(shown).split())
    while _MARK.search(line):
        line = _MARK.sub(r"(\1text)", line)
    folded = unicodedata.normalize("NFKC", line.replace("\u200c", "").replace("\u200d", ""))
    if _MARK.search(folded):
        line = _MARK.sub(r"(\1text)", folded)
    if len(line) > max_chars or len(text) > 4 * max_chars:
        line = line[: max_chars - 4].rstrip() + " ..."
    return line
