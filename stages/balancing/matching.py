"""MetaCLIP's matching of metadata entries in texts (Xu et al. 2024, "Demystifying CLIP Data", released code): sub-strings between spaces.

An entry matches where " entry " is a sub-string of the text with a space at both ends, with `, . ; : ? !` and the backtick wrapped by spaces, and with
tabs and line breaks replaced by spaces. Split at each single space, that is: the entry's words stand in the text's words side by side. So a text is
walked once, word by word, along the beginnings of entries that there are, instead of once for each of 500,000 entries.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Final

import fsspec

from pipeline.errors import RecipeError

WRAPPED: Final = ",.;:?!`"
_SPACING: Final = str.maketrans({**{mark: f" {mark} " for mark in WRAPPED}, "\t": " ", "\n": " ", "\r": " "})


def spaced(text: str) -> str:
    """The text as entries are looked for in it, without the spaces at its ends."""
    return text.translate(_SPACING)


class Matcher:
    """Finds entries in texts. `entries` keeps each once, in the order given; matches are places in it."""

    def __init__(self, entries: Iterable[str], ignore_case: bool = False) -> None:
        self.ignore_case = ignore_case
        self.entries: list[str] = list(dict.fromkeys(entry.lower() if ignore_case else entry for entry in entries))
        self._places: dict[str, int] = {}  # -1 for what only begins an entry
        for place, entry in enumerate(self.entries):
            at = entry.find(" ")
            while at >= 0:
                self._places.setdefault(entry[:at], -1)
                at = entry.find(" ", at + 1)
            self._places[entry] = place

    def __call__(self, text: str) -> list[int]:
        """Places of the entries in a text, each once, in the order in which they are first met."""
        words = spaced(text.lower() if self.ignore_case else text).split(" ")
        places, count = self._places, len(words)
        found: dict[int, None] = {}
        for start, word in enumerate(words):
            place, at = places.get(word), start + 1
            while place is not None:
                if place >= 0:
                    found[place] = None
                if at == count:
                    break
                word = f"{word} {words[at]}"
                place, at = places.get(word), at + 1
        found.pop(places.get("", -1), None)  # two spaces side by side are no entry
        return list(found)


def read_entries(path: str) -> list[str]:
    """Entries of a file: a JSON list (the form of MetaCLIP's metadata.json), else text, one per line. Blank ones are left out.

    Raises RecipeError where it cannot be read or has none."""
    try:
        with fsspec.open(path, "rt", encoding="utf-8-sig", compression="infer") as file:
            content = file.read()
        listed: Sequence[str] = json.loads(content) if ".json" in path.rpartition("/")[2] else content.splitlines()
        found = [entry.strip() for entry in listed if entry.strip()]
    except (OSError, ValueError, AttributeError) as error:
        raise RecipeError(f"balance.metadata.file: cannot read {path}: {error}; give a JSON list of texts, or a text file with one entry per line") from error
    if not found:
        raise RecipeError(f"balance.metadata.file: {path} has no entries")
    return found
