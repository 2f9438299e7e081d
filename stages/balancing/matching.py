"""MetaCLIP's matching of metadata entries in texts (Xu et al. 2024, "Demystifying CLIP Data", released code): sub-strings between spaces.

An entry matches where " entry " is a sub-string of the text with a space at both ends, with `, . ; : ? !` and the backtick wrapped by spaces, and with
tabs and line breaks replaced by spaces. Split at each single space, that is: the entry's words stand in the text's words side by side. So a text is
walked once, word by word, along the beginnings of entries that there are, instead of once for each of 500,000 entries.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Final

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import RecipeError
from pipeline.reason_columns import as_numbers
from stages.dups.components import distinct

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


    def of_texts(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Matches in many texts (string [N], no nulls) at once: place of the text (rising) and of the entry, each pair once; int64 [M] both."""
        if self.ignore_case:
            texts = pa.array([text.lower() for text in texts.to_pylist()], pa.string())
        lists = pc.split_pattern(_spaced_column(texts), " ")
        lengths = as_numbers(pc.list_value_length(lists))
        tree, text = self._tree, np.repeat(np.arange(len(texts)), lengths)
        words = as_numbers(pc.index_in(lists.flatten(), value_set=tree.words).fill_null(-1))
        at, found = np.arange(len(words)), []
        node = np.append(tree.first, -1)[words]
        while len(at):
            there = node >= 0
            at, node = at[there], node[there]
            place = tree.places[node]
            ends = place >= 0
            found.append(text[at[ends]] * len(self.entries) + place[ends])
            on = tree.goes_on[node] & (at + 1 < len(words))
            at, node = at[on] + 1, node[on]
            same = text[at] == text[at - 1]
            at, node = at[same], node[same]
            node = tree.after(node, words[at])
        pairs = distinct(np.concatenate(found)) if found else np.empty(0, np.int64)
        return pairs // max(1, len(self.entries)), pairs % max(1, len(self.entries))

    @cached_property
    def _tree(self) -> _Tree:
        return _Tree(self.entries)


class _Tree:
    """The entries' words as a tree in arrays. `words` are all of them; `first` [W] is the node of each as a beginning (-1 for none); `places` [nodes] is the
    entry that ends there (-1 for none), `goes_on` [nodes] whether a longer one goes on."""

    def __init__(self, entries: Sequence[str]) -> None:
        words: dict[str, int] = {}
        nodes: dict[tuple[int, int], int] = {}
        places: list[int] = []
        for place, entry in enumerate(entries):
            node = -1
            for word in entry.split(" "):
                step = (node, words.setdefault(word, len(words)))
                node = nodes.setdefault(step, len(nodes))
                if node == len(places):
                    places.append(-1)
            places[node] = place if entry else -1  # two spaces side by side are no entry
        self.words, self.places = pa.array(list(words), pa.string()), np.array(places, np.int64)
        above, word = np.array(list(nodes), np.int64).reshape(-1, 2).T
        self.first = np.full(len(words), -1, np.int64)
        self.first[word[above < 0]] = np.flatnonzero(above < 0)
        self.goes_on = np.zeros(len(nodes), bool)
        self.goes_on[above[above >= 0]] = True
        steps = above * len(words) + word
        self._order = np.argsort(steps)
        self._steps = steps[self._order]

    def after(self, nodes: np.ndarray, words: np.ndarray) -> np.ndarray:
        """The node behind each of some nodes by a word (-1 for none); -1 for words that no entry has."""
        step = nodes * len(self.words) + words
        at = np.minimum(np.searchsorted(self._steps, step), len(self._steps) - 1)
        return np.where((words >= 0) & (self._steps[at] == step), self._order[at], -1)


def _spaced_column(texts: pa.Array) -> pa.Array:
    for mark in WRAPPED:
        texts = pc.replace_substring(texts, mark, f" {mark} ")
    for white in "\t\n\r":
        texts = pc.replace_substring(texts, white, " ")
    return texts


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
