"""Words of texts in any script: what stands between spaces, but in scripts that are written without spaces each letter by itself."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

# Han, Hiragana, Bopomofo, Thai, Lao, Myanmar, Khmer, Tibetan. Katakana and Hangul are left as runs: words borrowed, and words between spaces.
_UNSPACED: Final = (
    r"\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u309f\u3100-\u312f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff"
)
# Vowel signs and accents are part of a word, though not of \w: they stay with the letter before them.
_MARKS: Final = "".join(mark for mark in map(chr, range(0x300, 0x2000)) if unicodedata.category(mark) in ("Mn", "Mc"))
WORD: Final = rf"[{_UNSPACED}][{_MARKS}]*|[^\W{_UNSPACED}]+(?:[{_MARKS}]+[^\W{_UNSPACED}]*)*"

words = re.compile(WORD).findall
