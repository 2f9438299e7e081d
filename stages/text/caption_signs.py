"""Signs that a generated caption went wrong: cut off, caught in a loop, a refusal, talk of an assistant, the prompt copied out."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

from stages.text.tagger import tokenize

_FILE = Path(__file__).parent / "assistant_phrases.txt"
LOOP_WORDS: Final = 12  # a loop of longer phrases is found by its repeated 4-grams
LOOP_TURNS: Final = 3
COPIED_WORDS: Final = 6

# Words that no complete caption ends with.
_OPEN_ENDS: Final = frozenset(
    "a an the and or but nor of in on at by to from with without into onto over under near beside between behind above below through across along "
    "toward towards around against for as than that which who whose while where when is are was were has have its his her their this these very".split()
)
_ENDED = re.compile(r"[.!?…。！？][\"'”’)\]]*\s*$")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def words_of(text: str) -> list[str]:
    """Case-folded words without punctuation."""
    return [word.replace("’", "'") for word in _WORD.findall(text.casefold())]


def is_cut_off(text: str, whole_sentences: bool) -> bool:
    """Whether a text breaks off: it ends with a comma, colon, dash or a word such as 'the'; with `whole_sentences` also without a full stop."""
    stripped = text.rstrip()
    if not stripped:
        return False
    tokens = tokenize(stripped[-200:])
    last = tokens[-1].lower() if tokens else ""
    return last in ",:;-–—" or last in _OPEN_ENDS or (whole_sentences and not _ENDED.search(stripped))


def has_loop(words: list[str]) -> bool:
    """Whether one to twelve words stand three times or more in a row (a single word four times: 'very, very, very old' is no loop)."""
    for length in range(1, LOOP_WORDS + 1):
        turns = LOOP_TURNS + (length == 1)
        equal = 0
        for at in range(length, len(words)):
            equal = equal + 1 if words[at] == words[at - length] else 0
            if equal >= length * (turns - 1):
                return True
    return False


def repeated_share(words: list[str], n: int = 4) -> float:
    """Share of word n-grams that stood before in the text, 0 to 1; 0 for a text shorter than n words."""
    grams = [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
    return round(1 - len(set(grams)) / len(grams), 4) if grams else 0.0


def refusal_phrase(text: str) -> str | None:
    """The first phrase of a refusal in a text; None where there is none."""
    return _first("refusal", text)


def assistant_phrase(text: str) -> str | None:
    """The first phrase by which an assistant talks to whoever asked; None where there is none."""
    return _first("assistant", text)


def copied_words(words: list[str], prompt: list[str]) -> int:
    """Length of the longest run of words of the prompt that stands in the text."""
    longest = 0
    before = [0] * (len(prompt) + 1)
    for word in words:
        now = [0] * (len(prompt) + 1)
        for at, asked in enumerate(prompt, 1):
            if word == asked:
                now[at] = before[at - 1] + 1
        longest = max(longest, *now)
        before = now
    return longest


def _first(section: str, text: str) -> str | None:
    match = _pattern(section).search(" ".join(text.casefold().replace("’", "'").split()))
    return match[0] if match else None


@cache
def _pattern(section: str) -> re.Pattern[str]:
    lines = _FILE.read_text(encoding="utf-8").splitlines()
    current, found = "", []
    for line in (line.strip() for line in lines):
        if line.startswith("["):
            current = line.strip("[]")
        elif line and not line.startswith("#") and current == section:
            found.append(line)
    starts = [rf"(?:^\W*){re.escape(phrase[1:])}" for phrase in found if phrase.startswith("^")]
    anywhere = [rf"(?<!\w){re.escape(phrase)}" for phrase in found if not phrase.startswith("^")]
    return re.compile("|".join(f"{phrase}(?!\\w)" for phrase in starts + anywhere))
