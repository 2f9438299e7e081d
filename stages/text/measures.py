"""Measures of one normalised text: lengths, language, letters, repetition, entropy, and signs of web boilerplate."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import pyarrow as pa

from stages.text.language import han_count

NGRAM: Final = 5  # characters

# One struct per text of a row, in the order of its `texts`.
MEASURES: Final = pa.list_(
    pa.struct(
        [
            ("own", pa.bool_()),  # the row's own text, not one that a duplicate brought
            ("n_chars", pa.int32()),
            ("n_words", pa.int32()),
            ("n_han", pa.int32()),
            ("lang", pa.string()),
            ("lang_score", pa.float32()),
            ("letters", pa.float32()),  # share of letters among characters that are no white space
            ("repeated_tokens", pa.float32()),  # 1 - distinct tokens / tokens
            ("repeated_ngrams", pa.float32()),  # 1 - distinct character 5-grams / 5-grams
            ("entropy", pa.float32()),  # of the text's own word distribution, nats
            ("boilerplate", pa.float32()),  # share of letters that belong to stock phrases
            ("file_name", pa.bool_()),
            ("url_share", pa.float32()),  # share of non-space characters inside URLs
            ("n_emoji", pa.int32()),
        ]
    )
)

_UNSPACED = "\u0e01-\u0e5b\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
_TOKEN = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+")
_ASCII_LETTER = re.compile("[A-Za-z]")
_LETTER_OR_MARK = re.compile(r"[^\W\d_]|[\u0900-\u0dff\u0e31\u0e34-\u0e4e\u0300-\u036f\u064b-\u065f]")
_URL = re.compile(
    r"(?:https?|ftp)://\S+|www\.\S+|(?<![\w@.])(?:[a-z0-9-]+\.)+(?:com|net|org|info|io|edu|gov|co|ru|de|fr|uk|jp|cn|br|it|es|nl|pl|eu)(?:/\S*|\b(?!\.?\w))",
    re.I,
)

_IMAGE_SUFFIX = r"\.(?:jpe?g|jpe|jfif|png|gif|webp|bmp|tiff?|svg|heic|heif|avif|ico|psd|raw|cr2|nef)"
_FILE_NAMES: Final = tuple(
    re.compile(pattern, re.I)
    for pattern in (
        rf".*\S{_IMAGE_SUFFIX}(?:[?#]\S*)?",  # anything that ends like an image file
        r"(?:img|dscn?|dscf|dsc|pict|imgp|pxl|gopr?|mvi|mvimg|sam|cimg|screenshot|screen shot|scan|whatsapp image|untitled|image|photo|pic|p)"
        r"[-_ ]?\d[\d\-_ :.()at]*(?:[-_][a-z0-9]+)?",  # camera and phone names: IMG_1234, Screenshot 2019-01-02 at 10.20
        r"(?=\S*\d)[0-9a-f]{16,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",  # digests, UUIDs
        r"(?=\S*\d)[a-z0-9]+(?:[-_.+%]+[a-z0-9]+){2,}",  # slugs with a number: 18302_red-shoe_n
        r"(?=\S*\d)(?=\S*_)\S+",  # one word with an underscore and a digit
        r"\d{5,}",  # a bare number
    )
)

# Emoji_Presentation of Unicode 15, the blocks above U+1F000 taken whole; and any character asked to be shown as emoji.
_EMOJI = re.compile(
    "[\U0001f000-\U0001faff\u231a\u231b\u23e9-\u23ec\u23f0\u23f3\u25fd\u25fe\u2614\u2615\u2648-\u2653\u267f\u2693\u26a1\u26aa\u26ab"
    "\u26bd\u26be\u26c4\u26c5\u26ce\u26d4\u26ea\u26f2\u26f3\u26f5\u26fa\u26fd\u2705\u270a\u270b\u2728\u274c\u274e\u2753-\u2755\u2757"
    "\u2795-\u2797\u27b0\u27bf\u2b1b\u2b1c\u2b50\u2b55]|.(?=\ufe0f)"
)

_FILLERS: Final = tuple(
    "a an the this that to of for on in at by with and or is be it here full size item items order id number no page".split()
)


def tokens(text: str) -> list[str]:
    """Words of a text: runs without white space; in scripts without spaces (Han, kana, Thai) each character is one."""
    return text.split() if text.isascii() else _TOKEN.findall(text)


def letter_share(text: str) -> float:
    """Share of letters (and the marks that belong to them) among the characters that are no white space, 0 to 1."""
    visible = len(text) - text.count(" ")
    if not visible:
        return 0.0
    pattern = _ASCII_LETTER if text.isascii() else _LETTER_OR_MARK
    return len(pattern.findall(text)) / visible


def repeated_share(items: list[str]) -> float:
    """1 - distinct / all, 0 for no item."""
    return 1 - len(set(items)) / len(items) if items else 0.0


def repeated_tokens(text: str, words: list[str]) -> float:
    """Share of repeated words; in scripts without spaces, whose single characters recur anyway, of pairs of neighbours."""
    if len(words) <= 1 or len(words) < 2 * len(text.split()):
        return repeated_share(words)
    return repeated_share([first + second for first, second in zip(words, words[1:], strict=False)])


def word_entropy(words: list[str]) -> float:
    """Shannon entropy (nats) of the words' own distribution: 0 for one word said again and again."""
    distinct = len(set(words))
    if distinct == len(words):
        return math.log(distinct) if distinct else 0.0
    total = len(words)
    return -sum(n / total * math.log(n / total) for n in Counter(words).values())


def is_file_name(text: str) -> bool:
    """True where the whole text is a file name, a camera's name, a digest, a slug with a number or a bare number."""
    return any(pattern.fullmatch(text) for pattern in _FILE_NAMES)


def url_share(text: str) -> float:
    """Share of the non-space characters that stand inside URLs or bare host names, 0 to 1."""
    if "." not in text and "://" not in text:
        return 0.0
    visible = len(text) - text.count(" ")
    return sum(match.end() - match.start() for match in _URL.finditer(text)) / visible if visible else 0.0


def emoji_count(text: str) -> int:
    """Number of characters shown as emoji."""
    return 0 if text.isascii() else len(_EMOJI.findall(text))


class Boilerplate:
    """Share of a text's letters that belong to stock phrases, matched on word boundaries and without regard to case.

    Stock phrases of several words ('add to cart') count, and with one of them in the text also the one-word phrases
    ('image') and filler words ('for', 'the', 'item') around it. One-word phrases without a stock phrase count only where
    nothing else is left: 'logo 2' is boilerplate, 'logo of a bakery' is not. Digits and punctuation count nowhere.
    """

    def __init__(self, phrases: Iterable[str]):
        folded = sorted({" ".join(phrase.casefold().split()) for phrase in phrases} - {""}, key=lambda p: (-len(p), p))
        self._any = _phrase_pattern(folded)
        self._stock = _phrase_pattern([phrase for phrase in folded if len(tokens(phrase)) > 1])
        self._around = _phrase_pattern([*folded, *_FILLERS])

    def share(self, text: str) -> float:
        """0 to 1; 0 for a text without letters."""
        folded = text.casefold()
        if self._any is None or self._around is None or not self._any.search(folded):
            return 0.0
        letters = sum(map(str.isalpha, folded))
        if not letters:
            return 0.0
        share = 1 - sum(map(str.isalpha, self._around.sub("", folded))) / letters
        return share if share == 1 or (self._stock is not None and self._stock.search(folded)) else 0.0


def _phrase_pattern(phrases: list[str]) -> re.Pattern[str] | None:
    if not phrases:
        return None
    spaced = rf"(?<!\w)(?:{'|'.join(map(re.escape, phrases))})(?!\w)"
    unspaced = [phrase for phrase in phrases if han_count(phrase)]  # no word boundaries in Han script
    return re.compile(spaced + (f"|(?:{'|'.join(map(re.escape, unspaced))})" if unspaced else ""))


def measure(text: str, own: bool, boilerplate: Boilerplate, spoken: tuple[str, float]) -> dict[str, Any]:
    """All MEASURES of one normalised text. `spoken`: its language and the probability of that."""
    words = tokens(text)
    folded = [word.casefold() for word in words]
    language, score = spoken
    grams = [text[i : i + NGRAM] for i in range(len(text) - NGRAM + 1)]
    return {
        "own": own,
        "n_chars": len(text),
        "n_words": len(words),
        "n_han": han_count(text),
        "lang": language,
        "lang_score": score,
        "letters": round(letter_share(text), 4),
        "repeated_tokens": round(repeated_tokens(text, folded), 4),
        "repeated_ngrams": round(repeated_share(grams), 4),
        "entropy": round(word_entropy(folded), 4),
        "boilerplate": round(boilerplate.share(text), 4),
        "file_name": is_file_name(text),
        "url_share": round(url_share(text), 4),
        "n_emoji": emoji_count(text),
    }
