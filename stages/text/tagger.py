"""Part-of-speech tags of English captions: HanTa (Wartena 2023, "The Hanover Tagger"), whose English model lies inside its package.

HanTa tags with the BNC's C5 tags; here they become the few classes that the rules of phrases and assertions need. Three classes of
its errors are mended by rules (`_mended`), none by a list of captions. Measured on the 430 tokens of 30 captions that were tagged by
hand before (tests/data/captions/golden_phrases.txt): see docs/caption_check.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from HanTa.HanoverTagger import HanoverTagger

NOUN, ADJECTIVE, DETERMINER, VERB, PREPOSITION = "noun", "adjective", "determiner", "verb", "preposition"
CONJUNCTION, NUMBER, ADVERB, PRONOUN, POSSESSIVE, OTHER = "conjunction", "number", "adverb", "pronoun", "possessive", "other"

MAX_TOKENS: Final = 600  # more of a text is not tagged
_MAX_LETTERS: Final = 30  # the tagger's time grows with the square of a word's length

_CLASSES: Final = {
    "AT0": DETERMINER, "DT0": DETERMINER, "DPS": DETERMINER, "DTQ": PRONOUN, "ORD": ADJECTIVE, "CRD": NUMBER, "CJC": CONJUNCTION,
    "CJS": PREPOSITION, "CJT": PREPOSITION, "PRF": PREPOSITION, "PRP": PREPOSITION, "TO0": PREPOSITION, "AVP": PREPOSITION,
    "EX0": PRONOUN, "POS": POSSESSIVE, "XX0": ADVERB, "ZZ0": NOUN, "UNC": NOUN,
}  # fmt: skip
_BY_LETTERS: Final = {"NN": NOUN, "NP": NOUN, "AJ": ADJECTIVE, "AV": ADVERB, "PN": PRONOUN, "VV": VERB, "VB": VERB, "VD": VERB, "VH": VERB, "VM": VERB}
_CLOSED: Final = frozenset({DETERMINER, PREPOSITION, CONJUNCTION, PRONOUN, POSSESSIVE})
_PARTICIPLES: Final = frozenset({"VVN", "VVG", "VVD"})

COLORS: Final = frozenset(
    "red orange yellow green cyan turquoise teal blue navy purple violet pink magenta brown beige tan white black gray grey maroon golden".split()
)
_ATTRIBUTES: Final = COLORS | frozenset("little medium polka-dot plaid tartan striped dotted spotted checked checkered patterned".split())
_COMPOUNDS: Final = frozenset({("plus", "sign"), ("minus", "sign"), ("close", "up"), ("tic", "tac")})
"""Nouns whose first word is else a function word."""

_TOKEN = re.compile(r"[^\W_]+(?:[-'’&/.][^\W_]+)*|[^\w\s]|_", re.U)
_CLITIC = re.compile(r"(?i)(.+?)(n['’]t|['’](?:s|re|ve|ll|d|m))$")


@dataclass(frozen=True, slots=True)
class Token:
    """A lowercased word or punctuation mark, its class (`NOUN`, ...), its tag in HanTa's set (C5) and its dictionary form."""

    text: str
    kind: str
    tag: str
    lemma: str


def tokenize(text: str) -> list[str]:
    """Words (with inner hyphens and points) and punctuation marks; 's and n't are words of their own, as the tagger expects."""
    words: list[str] = []
    for word in _TOKEN.findall(text):
        split = _CLITIC.match(word)
        words += [split[1], split[2].replace("’", "'")] if split else [word]
    return words


def spans_of_words(text: str) -> list[tuple[int, int]]:
    """Where each word of `tokenize` stands in the text: characters start to end (end excluded)."""
    spans: list[tuple[int, int]] = []
    for match in _TOKEN.finditer(text):
        split = _CLITIC.match(match[0])
        middle = match.start() + len(split[1]) if split else match.end()
        spans += [(match.start(), middle), *([(middle, match.end())] if split else [])]
    return spans


def tag(text: str) -> list[Token]:
    """Tagged tokens of a text's first 600, lowercased (web captions are too unevenly capitalised to tell names by it)."""
    words = [word.lower() for word in tokenize(text)[:MAX_TOKENS]]
    tokens: list[Token] = []
    start = 0
    for end, word in enumerate(words, 1):  # sentence by sentence: the tagger's context begins anew
        if word in ".!?;" or end == len(words):
            tokens += _tag_sentence(words[start:end])
            start = end
    return tokens


def _tag_sentence(words: list[str]) -> list[Token]:
    tagger = _tagger()
    # A word no dictionary has (a URL, a row of letters) is a noun; 'thing' stands for it in the sentence.
    asked = ["thing" if len(word) > _MAX_LETTERS else word for word in words]
    found = []
    for word, (_, lemma, tag_name) in zip(words, tagger.tag_sent(asked, casesensitive=False), strict=True):
        lemma = (lemma or word).lower() if len(word) <= _MAX_LETTERS else word
        kind = _CLASSES.get(tag_name) or _BY_LETTERS.get(tag_name[:2], OTHER)
        found.append(Token(word, kind if any(map(str.isalnum, word)) or kind == POSSESSIVE else OTHER, tag_name, lemma))
    return _mended(found)


def _mended(tokens: list[Token]) -> list[Token]:
    """Three classes of errors: an unknown word is no function word; a word of colour, pattern or size before a noun or adjective is an
    adjective; so is a participle between a determiner, adjective or number and a noun or adjective. And the compounds of `_COMPOUNDS`."""
    known = _tagger().cache
    kinds = [NOUN if token.kind in _CLOSED and token.text.isalpha() and token.text not in known else token.kind for token in tokens]
    for at, (token, following) in enumerate(zip(tokens, tokens[1:], strict=False)):
        if (token.text, following.text) in _COMPOUNDS:
            kinds[at] = kinds[at + 1] = NOUN
    for at in range(len(tokens) - 2, -1, -1):
        token, named_next = tokens[at], kinds[at + 1] in (NOUN, ADJECTIVE)
        led = at > 0 and kinds[at - 1] in (DETERMINER, ADJECTIVE, NUMBER)
        if named_next and (token.text in _ATTRIBUTES or (led and kinds[at] == VERB and token.tag in _PARTICIPLES)):
            kinds[at] = ADJECTIVE
    return [Token(token.text, kind, token.tag, token.lemma) for token, kind in zip(tokens, kinds, strict=True)]


@cache
def _tagger() -> HanoverTagger:
    from HanTa.HanoverTagger import HanoverTagger

    return HanoverTagger("morphmodel_en.pgz")
