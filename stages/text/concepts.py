"""Where texts name things: spans of characters of noun phrases, or of a dictionary's names (ConceptCLIP, Nie et al. 2025)."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import fsspec
import numpy as np

from pipeline.errors import RecipeError
from stages.text.phrases import chunk, is_web_word
from stages.text.tagger import MAX_TOKENS, spans_of_words, tag
from stages.text.unspaced import WORD

_WORD = re.compile(rf"{WORD}|[^\w\s]")
MAX_CANDIDATES: Final = 50  # names that a phrase is compared with, those that share most of its letter triples


@dataclass(frozen=True, slots=True)
class Span:
    """One concept in a text: characters start to end (end excluded), its id, and how sure it is (1: the very name)."""

    id: str
    score: float
    start: int
    end: int


def noun_phrase_spans(text: str) -> list[Span]:
    """Adjectives and nouns of each noun phrase (determiner and words of web pages at its ends left out), in the order of the text; the id is the phrase in
    lower case, the score 1."""
    tokens, places = tag(text), spans_of_words(text)[:MAX_TOKENS]
    found = []
    for phrase in chunk(tokens):
        at = [nth for nth in range(phrase.start, phrase.end) if tokens[nth].text != phrase.determiner and not is_web_word(tokens[nth].text)]
        if at:
            found.append(Span(phrase.name, 1.0, places[at[0]][0], places[at[-1]][1]))
    return found


class Dictionary:
    """Names with ids. A name is found where its words stand in a text, letters of either case, the longest first and none inside another; in scripts without
    spaces (Chinese, Japanese, Thai) wherever its letters do.

    With `min_score` below 1, a noun phrase that holds no name gets the id of the name most like it: cosine of their counts of letter triples, the measure
    that scispaCy's linker ranks by; ConceptCLIP's released sample has none below 0.80.
    """

    def __init__(self, names: Iterable[tuple[str, str]], min_score: float = 1.0) -> None:
        self.min_score = min_score
        self._ids: dict[tuple[str, ...], str] = {}
        self._longest = 0
        for identifier, name in names:
            words = tuple(_WORD.findall(name.lower()))
            if words:
                self._ids.setdefault(words, identifier)
                self._longest = max(self._longest, len(words))
        self._first = {words[0] for words in self._ids}
        self._names = list(self._ids)
        self._triples: list[dict[str, int]] = []
        self._having: dict[str, list[int]] = defaultdict(list)
        for place, words in enumerate(self._names if min_score < 1 else []):
            self._triples.append(triples(" ".join(words)))
            for triple in self._triples[place]:
                self._having[triple].append(place)

    def spans(self, text: str) -> list[Span]:
        """Concepts of a text in its order."""
        found = list(self._exact(text))
        if self.min_score < 1:
            taken = [(span.start, span.end) for span in found]
            free = [one for one in noun_phrase_spans(text) if all(one.end <= start or end <= one.start for start, end in taken)]
            found += [linked for one in free if (linked := self._linked(one)) is not None]
        return sorted(found, key=lambda span: span.start)

    def _exact(self, text: str) -> Iterator[Span]:
        matches = list(_WORD.finditer(text))
        words = [match[0].lower() for match in matches]
        at = 0
        while at < len(words):
            longest = min(self._longest, len(words) - at) if words[at] in self._first else 0
            for length in range(longest, 0, -1):
                identifier = self._ids.get(tuple(words[at : at + length]))
                if identifier is not None:
                    yield Span(identifier, 1.0, matches[at].start(), matches[at + length - 1].end())
                    at += length - 1
                    break
            at += 1

    def _linked(self, phrase: Span) -> Span | None:
        own, shared = triples(" ".join(_WORD.findall(phrase.id))), defaultdict(int)
        for triple, count in own.items():
            for place in self._having.get(triple, ()):
                shared[place] += count * self._triples[place][triple]
        best: tuple[float, int] | None = None
        for place in sorted(shared, key=lambda one: (-shared[one], one))[:MAX_CANDIDATES]:
            score = round(shared[place] / (_length(own) * _length(self._triples[place])), 4)
            if score >= self.min_score and (best is None or score > best[0]):
                best = (score, place)
        return Span(self._ids[self._names[best[1]]], best[0], phrase.start, phrase.end) if best else None


def triples(name: str) -> dict[str, int]:
    """Counts of three letters side by side, with a space at both ends of the name."""
    padded = f" {name} "
    found: dict[str, int] = defaultdict(int)
    for at in range(max(1, len(padded) - 2)):
        found[padded[at : at + 3]] += 1
    return dict(found)


def _length(counts: Mapping[str, int]) -> float:
    return float(np.sqrt(sum(count * count for count in counts.values())))


def read_dictionary(path: str, where: str) -> list[tuple[str, str]]:
    """(id, name) of each line of a text file: id, tab, name; or a name alone, which is its own id. Blank lines and those that start with '#' are left out.

    Raises RecipeError, beginning with `where`."""
    try:
        with fsspec.open(path, "rt", encoding="utf-8-sig", compression="infer") as file:
            content = file.read()
    except (OSError, ValueError) as error:
        raise RecipeError(f"{where}: cannot read {path}: {error}; name a text file with 'id<TAB>name' or a name in each line") from error
    lines = [line for line in csv.reader(io.StringIO(content), delimiter="\t", quoting=csv.QUOTE_NONE) if line and line[0].strip() and line[0][0] != "#"]
    if not lines:
        raise RecipeError(f"{where}: {path} has no names")
    return [(line[0].strip(), line[-1].strip()) for line in lines]
