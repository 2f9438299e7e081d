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
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

UNKNOWN: Final = "und"
MAX_CHARS: Final = 400  # more text changes the answer no more and costs time
_TOGETHER: Final = 1024  # texts whose bytes are read together

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

    class Identifier(LanguageIdentifier):
        """Takes the features of a text that were counted before."""

        __slots__ = ("counted",)

        def _raw_score(self, text: bytes) -> np.ndarray:
            visits = self.counted.pop(text, None)
            return self._sparse_score(visits, self.nb_ptc) if visits else super()._raw_score(text)

    identifier = Identifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(candidates)
    identifier.nb_ptc = identifier.nb_ptc.astype(np.float32)  # as each product would make it: the same numbers, sooner
    identifier.counted = {}
    return identifier


@lru_cache(maxsize=1)
def _automaton() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """py3langid's automaton: next state of (row, byte), first place of each state's row, feature of each state or -1."""
    model = _identifier(CANDIDATES)
    return np.asarray(model.tk_nextmove), np.asarray(model._rowbase), np.asarray(model.tk_output)


def identify(text: str, candidates: tuple[str, ...] = CANDIDATES) -> tuple[str, float]:
    """Language (ISO 639-1) and its probability, 0 to 1; 'und' and 0 for a text without letters.

    Where the script decides (Chinese, Japanese, Korean, Thai, Hebrew, Greek) the number is the share of letters in that
    script. Only the first 400 characters are looked at. Raises ValueError for a candidate that the model does not know.
    """
    text = text[:MAX_CHARS]
    return _without_model(text) or _by_model(text, _identifier(candidates))


def identify_all(texts: Sequence[str], candidates: tuple[str, ...] = CANDIDATES) -> list[tuple[str, float]]:
    """What `identify` says of each text. The model's automaton reads the bytes of many texts together, which is a third faster."""
    texts = [text[:MAX_CHARS] for text in texts]
    found = {text: _without_model(text) for text in texts}
    asked = [text for text, answer in found.items() if answer is None]
    for start in range(0, len(asked), _TOGETHER):
        some, identifier = asked[start : start + _TOGETHER], _identifier(candidates)
        encoded = [identifier._encode(_as_read(text)) for text in some]
        identifier.counted = dict(zip(encoded, map(Counter, _features(encoded)), strict=True))
        found |= {text: _by_model(text, identifier) for text in some}
    return [answer for text in texts if (answer := found[text]) is not None]


def _without_model(text: str) -> tuple[str, float] | None:
    """The answer where the letters' script tells it, or there are none."""
    if not text.isascii():
        return _by_script(text)
    return None if any(map(str.isalpha, text)) else (UNKNOWN, 0.0)


def _as_read(text: str) -> str:
    return text.lower() if text.isupper() else text


def _by_model(text: str, identifier: LanguageIdentifier) -> tuple[str, float]:
    language, score = identifier.classify(_as_read(text))
    return language, round(float(score), 4)


def _features(texts: Sequence[bytes]) -> list[list[int]]:
    """The features that the automaton meets in each text, in their order; all texts advance by one byte at a time."""
    moves, rows, features = _automaton()
    lengths = np.array([len(text) for text in texts])
    order = np.argsort(-lengths, kind="stable")  # so that those still running stand first
    letters = np.zeros((len(texts), max(lengths, default=0)), np.uint8)
    for place, text in enumerate(order.tolist()):
        letters[place, : lengths[text]] = np.frombuffer(texts[text], np.uint8)
    met = np.full(letters.shape, -1, np.int32)
    state = np.zeros(len(texts), np.int64)
    for at in range(letters.shape[1]):
        running = int((lengths > at).sum())
        state[:running] = moves[rows[state[:running]] + letters[:running, at]]
        met[:running, at] = features[state[:running]]
    found: list[list[int]] = [[]] * len(texts)
    for place, text in enumerate(order.tolist()):
        row = met[place]
        found[text] = row[row >= 0].tolist()
    return found
