"""How much a text says of one thing, and whether something happens in it: the rule 'complexity, action' of DiHT (Radenovic et al. 2023), which RealSyn uses.

DiHT parses a text into a graph: complexity k is the largest number of relations on any object, attributes among them, and an action is a verb that is one
[mem]. Its parser is not known in detail; ours are rules on part-of-speech tags, those of stages/text/assertions.py:

- an object is a noun phrase or a pronoun (he, she, it, they); its relations are its adjectives, its number, and what is said between it and the object
  before or behind it (full verbs, else one for a preposition, 'have' or 'be'), which counts for both;
- an action is a full verb ('runs', 'playing', 'parked'), not one that merely links (be, have, do, can).
"""

from __future__ import annotations

from dataclasses import dataclass

from stages.text.assertions import entities_of, is_attribute, join_prepositions, relations
from stages.text.sentences import split_sentences
from stages.text.tagger import PREPOSITION, VERB, Token, tag


@dataclass(frozen=True, slots=True)
class Structure:
    """complexity: the most relations on one object; actions: full verbs."""

    complexity: int
    actions: int


def structure(text: str) -> Structure:
    """Both of an English text; (0, 0) for one without words."""
    sentences = [join_prepositions(tag(sentence)) for sentence in split_sentences(text)]
    return Structure(max(map(_complexity, sentences), default=0), sum(map(_is_action, (token for sentence in sentences for token in sentence))))


def _complexity(tokens: list[Token]) -> int:
    opening, entities = entities_of(tokens)
    before = int(len(entities) > 1 and any(token.kind == PREPOSITION for token in opening))
    most = 0
    for place, entity in enumerate(entities):
        said = relations(entity.behind, last=place == len(entities) - 1)
        own = len(entity.phrase.adjectives) if entity.phrase is not None else 0
        most = max(most, own + bool(entity.number) + sum(map(is_attribute, entity.behind)) + before + said)
        before = said
    return most


def _is_action(token: Token) -> bool:
    return token.kind == VERB and token.tag.startswith("VV")
