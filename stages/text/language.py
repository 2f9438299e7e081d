"""Language of a short text: writing system first, then py3langid (its model is part of the package, 4.5 MB).

Measured by tests/stages/text/test_language.py (one core): right for 96.9 % of 160 hand-written sentences of 2 to 8 words in
16 languages, cut to their first word 56 %, two words 84 %, three 92 %, four 94 % (14 languages written with spaces);
99.85 % of 2,000 real English captions (Conceptual Captions, validation); all of 500 English and 700 other captions of the
demo. Texts of one or two words cannot be told well: give `min_lang_score`, or ask for three words before the language.
About 20,000 texts a second of 30 characters, 10,000 of 100. Compared on the same texts: fastText's small model
96.3 % and 99.7 % (sentences, real captions), lingua 96.9 % and 98.0 % at 500 to 1,200 texts a second, and py3langid with
all its languages 93.8 % and 99.5 %.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

UNKNOWN: Final = "und"
MAX_CHARS: Final = 400  # more text changes the answer no more and costs time

# Languages the classifier may answer with. All of its classes would cost accuracy on short texts of the common ones.
CANDIDATES: Final[tuple[str, ...]] = (
    "ar", "bg", "ca", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fr", "he", "hi", "hr", "hu", "id", "it", "ja", "ko",
    "nl", "no", "pl", "pt", "ro", "ru", "sk", "sr", "sv", "th", "tr", "uk", "vi", "zh",
)  # fmt: skip

# Scripts that one language (of CANDIDATES) is written in. Kana makes a text with Han characters Japanese.
_KANA = re.compile("[\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f]")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_SCRIPTS: Final = (
    ("ko", re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")),
    ("th", re.compile("[\u0e01-\u0e3a\u0e40-\u0e5b]")),
    ("he", re.compile("[\u05d0-\u05ea]")),
    ("el", re.compile("[\u0370-\u03ff\u1f00-\u1fff]")),
)
_LETTER = re.compile(r"[^\W\d_]")


def han_count(text: str) -> int:
    """Number of Han characters (Chinese characters, also as used in Japanese)."""
    return 0 if text.isascii() else len(_HAN.findall(text))


def _by_script(text: str) -> tuple[str, float] | None:
    """Language and share of letters where more than half of the letters are in a script that tells it, else None."""
    letters = len(_LETTER.findall(text))
    if not letters:
        return UNKNOWN, 0.0
    kana, han = len(_KANA.findall(text)), len(_HAN.findall(text))
    if 2 * (kana + han) > letters:
        return ("ja" if kana else "zh"), min(1.0, (kana + han) / letters)
    for language, pattern in _SCRIPTS:
        count = len(pattern.findall(text))
        if 2 * count > letters:
            return language, min(1.0, count / letters)
    return None


@lru_cache(maxsize=4)
def _identifier(candidates: tuple[str, ...]) -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(candidates)
    return identifier


def identify(text: str, candidates: tuple[str, ...] = CANDIDATES) -> tuple[str, float]:
    """Language (ISO 639-1) and its probability, 0 to 1; 'und' and 0 for a text without letters.

    Where the script decides (Chinese, Japanese, Korean, Thai, Hebrew, Greek) the number is the share of letters in that
    script. Only the first 400 characters are looked at. Raises ValueError for a candidate that the model does not know.
    """
    text = text[:MAX_CHARS]
    if not text.isascii():
        found = _by_script(text)
        if found is not None:
            return found
    elif not any(map(str.isalpha, text)):
        return UNKNOWN, 0.0
    language, score = _identifier(candidates).classify(text.lower() if text.isupper() else text)
    return language, round(float(score), 4)
