"""Number of assertions of a caption, and of the distinct things it names: how rich a caption is.

Revisit (Lai et al. 2024) lets a language model split captions into atomic claims and reports 2.49, 8.13 and 12.20 of them for its short,
descriptive and dense captions. Ours is a rule of our own on part-of-speech tags; its numbers are not comparable with the paper's, only
with each other. In each sentence:

- every adjective is one ('a small red circle': 2; 'the sky is clear': 1), words of place such as 'left' excepted;
- every number is one ('two women');
- between two entities every full verb is one; where there is none, a preposition, 'have' or 'be' between them is one ('sits on', 'above',
  'is to the left of', 'larger than': 1 each; 'and', a comma, 'while': 0; 'runs and jumps over': 2). The same behind the last entity
  ('a dog runs', 'a star at the top'), where 'be' and 'have' alone are none;
- a preposition that opens a sentence of two entities is one ('In the park, children ...');
- an entity that takes part in none of these is one ('a cat': 1).

Entities are noun phrases (stages/text/phrases.py: none that are stop-words or generic web words only) and the pronouns he, she, it and
they, which alone are none. What stands before the first entity, such as 'there is' or 'the photo shows', is none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from stages.text.phrases import NounPhrase, chunk, is_web_word, stop_words
from stages.text.sentences import split_sentences
from stages.text.tagger import ADJECTIVE, NOUN, NUMBER, PREPOSITION, VERB, Token, tag

_REFERRING: Final = frozenset("he she it they him her them".split())
_CLAUSE_TAGS: Final = frozenset({"CJS", "CJT"})
_PREPOSITIONS: Final = tuple(
    tuple(words.split())
    for words in (
        "to the left of", "to the right of", "on the left of", "on the right of", "on the left side of", "on the right side of",
        "in the middle of", "in the center of", "at the top of", "at the bottom of", "on the edge of", "at the edge of", "in front of",
        "on top of", "left of", "right of", "next to", "close to", "together with", "along with", "and also",
    )
)  # fmt: skip


@dataclass
class Entity:
    """A thing that a sentence names: its phrase (None for a pronoun), its number word, and what is said behind it up to the next one."""

    phrase: NounPhrase | None
    number: str = ""
    behind: list[Token] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Richness:
    """Assertions, distinct nouns (by dictionary form) and sentences of a caption."""

    assertions: int
    nouns: int
    sentences: int


def richness(caption: str) -> Richness:
    """The three counts of an English caption; (0, 0, 0) for one without words."""
    sentences = split_sentences(caption)
    tokens = [tag(sentence) for sentence in sentences]
    nouns = {t.lemma for sentence in tokens for t in sentence if t.kind == NOUN and not (is_web_word(t.text) or t.text in stop_words())}
    return Richness(sum(count_assertions(sentence) for sentence in tokens), len(nouns), len(sentences))


def count_assertions(tokens: list[Token]) -> int:
    """Assertions of one tagged sentence."""
    tokens = join_prepositions(tokens)
    opening, entities = entities_of(tokens)
    count = sum(is_attribute(token) or token.kind == NUMBER for token in tokens)
    before = int(len(entities) > 1 and bool(opening) and opening[0].kind == PREPOSITION and opening[0].tag not in _CLAUSE_TAGS)
    for place, entity in enumerate(entities):
        said = relations(entity.behind, last=place == len(entities) - 1)
        count += said + (before if place == 0 else 0)
        own = entity.phrase is None or any(word not in stop_words() for word in entity.phrase.adjectives) or bool(entity.number)
        count += not (own or said or before or any(map(is_attribute, entity.behind)))
        before = said
    return count


def join_prepositions(tokens: list[Token]) -> list[Token]:
    """Prepositions of several words ('to the left of') and comparisons ('larger than') as one token."""
    joined: list[Token] = []
    at = 0
    while at < len(tokens):
        length = _preposition_at(tokens, at)
        if length:
            text = " ".join(token.text for token in tokens[at : at + length])
            joined.append(Token(text, PREPOSITION, "PRP", text))
        else:
            joined.append(tokens[at])
        at += length or 1
    return joined


def _preposition_at(tokens: list[Token], at: int) -> int:
    """How many tokens a preposition of several words takes that begins here; 0 where none does."""
    if tokens[at].kind == ADJECTIVE and at + 1 < len(tokens) and tokens[at + 1].text == "than":
        return 2
    for words in _PREPOSITIONS:
        if tuple(token.text for token in tokens[at : at + len(words)]) == words:
            return len(words)
    return 0


def entities_of(tokens: list[Token]) -> tuple[list[Token], list[Entity]]:
    """What stands before the first entity of a sentence, and its entities in order. A number before a phrase becomes the entity's."""
    starts = {phrase.start: phrase for phrase in chunk(tokens)}
    opening: list[Token] = []
    entities: list[Entity] = []
    at = 0
    while at < len(tokens):
        phrase, token = starts.get(at), tokens[at]
        said = entities[-1].behind if entities else opening
        if phrase is not None:
            number = said.pop().text if said and said[-1].kind == NUMBER else ""
            entities.append(Entity(phrase, number))
            at = phrase.end
            continue
        if token.text in _REFERRING and token.kind != NOUN and not _before_noun(tokens, at):
            entities.append(Entity(None))
        else:
            said.append(token)
        at += 1
    return opening, entities


def _before_noun(tokens: list[Token], at: int) -> bool:
    return at + 1 < len(tokens) and tokens[at + 1].kind in (NOUN, ADJECTIVE)


def relations(between: list[Token], last: bool) -> int:
    """Relations that the words behind an entity state: its full verbs, else one for a preposition, 'have' or 'be'."""
    verbs = sum(token.kind == VERB and token.tag.startswith("VV") for token in between)
    if verbs:
        return verbs
    if any(token.kind == PREPOSITION and token.tag not in _CLAUSE_TAGS for token in between):
        return 1
    linking = any(token.kind == VERB and token.tag[:2] in ("VB", "VH", "VD") for token in between)
    return int(linking and not last and not any(map(is_attribute, between)))


def is_attribute(token: Token) -> bool:
    return token.kind == ADJECTIVE and token.text not in stop_words() and not is_web_word(token.text)
