"""Noun phrases of a caption by the rules of CLOC's VESL (Chen et al. 2024, arXiv 2410.02746): what an open-vocabulary detector is asked for.

Lowercase, split into words, drop 61 generic words of web pages, tag parts of speech, take every run of an optional determiner,
adjectives and one or more nouns, drop those made of stop-words only, keep the first 20. The paper does not list its 61 words: those of
web_words.txt are our own, and so are the stop-words. One deviation: words are tagged before the generic ones are dropped, not after,
since 'the shows a window' (from 'the photo shows a window') is tagged worse than the whole sentence. A phrase is given once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from stages.text.tagger import ADJECTIVE, DETERMINER, NOUN, Token, tag

MAX_PHRASES: Final = 20
_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class NounPhrase:
    """An optional determiner (a possessive too), adjectives, nouns of which the last is the head. `start`, `end`: its tokens;
    `lemma`, `tag`: dictionary form and C5 tag of the head."""

    determiner: str
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    lemma: str
    tag: str
    start: int
    end: int

    @property
    def text(self) -> str:
        """The phrase as it stands in the lowercased caption, generic words left out."""
        return " ".join((*([self.determiner] if self.determiner else []), *self.adjectives, *self.nouns))

    @property
    def name(self) -> str:
        """The phrase without its determiner."""
        return " ".join((*self.adjectives, *self.nouns))


def noun_phrases(caption: str, limit: int = MAX_PHRASES) -> list[str]:
    """The first `limit` distinct noun phrases of a caption, lowercased."""
    return list(dict.fromkeys(phrase.text for phrase in chunk(tag(caption))))[:limit]


def chunk(tokens: list[Token]) -> list[NounPhrase]:
    """All noun phrases of tagged tokens in their order; generic words are passed over, phrases of stop-words are left out."""
    phrases: list[NounPhrase] = []
    at = 0
    while at < len(tokens):
        end, phrase = _phrase_at(tokens, at)
        if phrase is not None and not stop_words() >= set(phrase.text.split()):
            phrases.append(phrase)
        at = max(end, at + 1)
    return phrases


def _phrase_at(tokens: list[Token], start: int) -> tuple[int, NounPhrase | None]:
    """The phrase that begins at a token and where it ends; (start, None) where none begins."""
    at, determiner, adjectives, nouns = start, "", [], []
    lemma = tag_name = ""
    while at < len(tokens):
        token = tokens[at]
        if is_web_word(token.text):
            pass
        elif token.kind == DETERMINER and not (determiner or adjectives or nouns):
            determiner = token.text
        elif token.kind == ADJECTIVE and not nouns:
            adjectives.append(token.text)
        elif token.kind == NOUN:
            nouns.append(token.text)
            lemma, tag_name = token.lemma, token.tag
        else:
            break
        at += 1
    if not nouns:
        return start, None
    return at, NounPhrase(determiner, tuple(adjectives), tuple(nouns), lemma, tag_name, start, at)


def is_web_word(word: str) -> bool:
    """True for a generic word of web pages or its plural."""
    return word in web_words() or (word.endswith("s") and word[:-1] in web_words())


@cache
def web_words() -> frozenset[str]:
    """The 61 generic words of web_words.txt."""
    return _words("web_words.txt")


@cache
def stop_words() -> frozenset[str]:
    """The words of stop_words.txt."""
    return _words("stop_words.txt")


def _words(name: str) -> frozenset[str]:
    lines = (_FOLDER / name).read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())
