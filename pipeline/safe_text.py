"""Texts of the web in a terminal: none may reach it as a control sequence, and none may leave its place.

The terminal's own controls (C0, C1, DEL), marks that turn the direction of what stands beside them (Unicode's bidirectional controls), line
and paragraph separators, invisible format characters, surrogates and noncharacters are shown as escapes: \\x1b, \\u202e. Zero width joiner and
non-joiner stay, since scripts and emoji need them, and so do the letters of scripts that run from right to left.
"""

from __future__ import annotations

import re
import unicodedata

_KEPT_FORMATS = "\u200c\u200d"
_NOT_PLAIN = re.compile(r"[^\x20-\x7e\u00a0-\u00ac\u00ae-\u02ff\u0370-\u0482\u048a-\u0590\u4e00-\u9fff\u3040-\u3098\uac00-\ud7a3]")
_MARKS = re.compile(r"[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{5,}")
MOST_MARKS = 4  # combining marks on one letter: more would climb over the lines beside it


def safe(text: str) -> str:
    """`text` with its line breaks, and with everything else that acts on a terminal shown as an escape. Idempotent."""
    return _MARKS.sub(lambda found: found[0][:MOST_MARKS], _NOT_PLAIN.sub(_shown, text))


def one_line(text: object, longest: int = 0) -> str:
    """`safe` for a value that comes from outside: line breaks and tabs are shown as \\n, \\r, \\t, and a long one is cut to `longest` characters."""
    whole = str(text)
    cut = whole if not longest or len(whole) <= longest else f"{whole[:longest]} ... ({len(whole):,} characters)"
    return safe(cut.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t"))


def safe_json(text: str) -> str:
    """Written JSON with the same characters as \\uXXXX, which a JSON reader turns back into what they were."""
    return _NOT_PLAIN.sub(lambda found: found[0] if found[0] == "\n" or _harmless(found[0]) else _utf16(found[0]), text)


def _shown(found: re.Match[str]) -> str:
    letter = found[0]
    if letter == "\n" or _harmless(letter):
        return letter
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _harmless(letter: str) -> bool:
    if letter in _KEPT_FORMATS:
        return True
    return unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp")


def _utf16(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
