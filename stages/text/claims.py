"""The claims of a caption as yes/no questions: what a model is asked when it is to check a caption against the image.

Kinds: object ('Is there a red car in the image?': a thing with its colours), attribute ('Is the red car old?'), number ('Are there two
red cars in the image?'), place in the image ('Is the red car on the left?'), relation ('Is the red car next to the house?', 'Does the
dog chase the ball?') and scene ('Is this picture on a white background?'). A colour goes with its thing, since 'the red car' and 'the
blue car' of one caption can be told apart by it; every other adjective is asked by itself. Words are those of the caption; what the rules
do not understand (clauses, pronouns, comparisons with nothing named) is not asked.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal, get_args

from stages.text.assertions import Entity, entities_of, join_prepositions
from stages.text.phrases import NounPhrase, stop_words
from stages.text.sentences import split_sentences
from stages.text.tagger import COLORS, CONJUNCTION, DETERMINER, OTHER, PREPOSITION, VERB, Token, tag

Kind = Literal["object", "attribute", "number", "place", "relation", "scene"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

_SHADES: Final = frozenset({"light", "dark", "pale", "bright", "deep"})
_PLACES: Final = frozenset("top bottom left right center centre middle corner edge side foreground".split())
_PICTURES: Final = frozenset("drawing sketch painting scene rendering snapshot shot footage portrait".split())
_GROUNDS: Final = frozenset({"background", "backdrop"})
_TIMES: Final = frozenset("dawn dusk sunset sunrise night day morning afternoon evening noon midnight spring summer autumn fall winter".split())
_SINGULAR: Final = frozenset({"a", "an", "this", "that", "each", "every", "another"})
_MASS: Final = frozenset(
    "sand snow water grass paper ice rain food bread rice meat milk coffee tea wine beer sugar salt smoke fog mud dirt soil hair furniture traffic "
    "clothing jewelry sunlight light luggage equipment wood metal glass plastic cloth fabric text writing graffiti foliage vegetation".split()
)
_NO_PROPERTY: Final = frozenset("single main whole various different several numerous additional entire certain particular".split())
_LISTING: Final = frozenset({"with", "together with", "along with", "and also"})
_JOINING: Final = frozenset({"with", "of"})


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim: its kind, the words of the caption it rests on, and the question that asks for it."""

    kind: Kind
    claim: str
    question: str


def claims_of(caption: str, kinds: Collection[str] = KINDS, limit: int = 24) -> list[Claim]:
    """The first `limit` distinct claims of the given kinds, sentence by sentence; within one, things before relations."""
    found: dict[str, Claim] = {}
    for sentence in split_sentences(caption):
        _, entities = entities_of(join_prepositions(tag(sentence)))
        owners = _owners(entities)
        named = [claim for entity, owner in zip(entities, owners, strict=True) for claim in _of_thing(entity, owner)]
        linked = [claim for at in range(len(entities) - 1) for claim in _of_pair(entities[at], owners[at], entities[at + 1], last=at == len(entities) - 2)]
        for claim in named + linked:
            if claim.kind in kinds:
                found.setdefault(claim.question, claim)
    return list(found.values())[:limit]


def _owners(entities: list[Entity]) -> list[Entity]:
    """For each thing the one that a verb behind it belongs to: 'a man in a hat feeds pigeons' speaks of the man throughout, and a thing
    that a comma or 'and' adds speaks for itself."""
    owners: list[Entity] = []
    for at, entity in enumerate(entities):
        carried = at > 0 and bool(_connecting(entities[at - 1].behind))
        owners.append(owners[-1] if carried else entity)
    return owners


def _of_thing(entity: Entity, owner: Entity) -> list[Claim]:
    phrase = entity.phrase
    if phrase is None or phrase.lemma in _PICTURES | _GROUNDS | _TIMES or phrase.lemma in COLORS:
        return []
    name, verb = _name(phrase), "Are" if _plural(phrase) else "Is"
    claims = [Claim("object", name, _exists(phrase, name))]
    if entity.number and _plural(phrase):  # asks for the thing as well
        claims = [Claim("number", f"{entity.number} {name}", f"Are there {entity.number} {name} in the image?")]
    claims += [Claim("attribute", f"{name}: {word}", f"{verb} the {name} {word}?") for word in _properties(phrase)]
    place = _place(entity.behind)
    if place and owner.phrase is not None:
        named = _name(owner.phrase)
        claims.append(Claim("place", f"{named} {place}", f"{'Are' if _plural(owner.phrase) else 'Is'} the {named} {place}?"))
    return claims


def _of_pair(first: Entity, owner: Entity, second: Entity, last: bool) -> list[Claim]:
    """The relation that the words between two things state, if the rules understand it. What a comma and a preposition add at the end of
    a sentence, and a background or bare colour, is said of the whole picture."""
    words = _connecting(first.behind)
    if second.phrase is None or not words:
        return []
    linked = " ".join(token.text for token in words if token.kind == PREPOSITION)
    verbless = not any(token.kind == VERB for token in words)
    apart = last and verbless and any(token.text == "," for token in first.behind)
    if linked and (second.phrase.lemma in _GROUNDS | COLORS or apart):
        whole = f"{linked} {second.phrase.text if second.phrase.determiner == 'the' else _with_article(second.phrase, second.phrase.name)}"
        return [Claim("scene", whole, f"Is this picture {whole}?")]
    subject = first if verbless and linked != "with" else owner
    if subject.phrase is None or {subject.phrase.lemma, second.phrase.lemma} & (_PICTURES | _TIMES):
        return []
    question = _asked(subject.phrase, words, linked, second.phrase)
    statement = f"{_name(subject.phrase)} {' '.join(token.text for token in words)} {_name(second.phrase)}"
    return [Claim("relation", statement, question)] if question else []


def _asked(first: NounPhrase, words: list[Token], linked: str, second: NounPhrase) -> str:
    """The question for a relation; '' where the words between are none that the rules understand."""
    subject, thing, plural = f"the {_name(first)}", f"the {_name(second)}", _plural(first)
    verbs = [token for token in words if token.kind == VERB]
    full = [token for token in verbs if token.tag.startswith("VV")]
    if any(token.tag.startswith("VM") for token in verbs) or len(full) > 1:
        return ""
    if not full and any(token.tag.startswith("VH") for token in verbs):
        return f"{'Do' if plural else 'Does'} {subject} have {_with_article(second, _name(second))}?"
    if not full and linked in _JOINING:
        both = f"{_with_article(first, _name(first))} {linked} {_with_article(second, _name(second))}"
        return f"{'Are' if plural else 'Is'} there {both} in the image?"
    if not full:
        return f"{'Are' if plural else 'Is'} {subject} {linked} {thing}?" if linked else ""
    link = f" {linked}" if linked else ""
    if full[0].tag in ("VVG", "VVN") or any(token.tag.startswith("VB") for token in verbs):
        return f"{'Are' if plural else 'Is'} {subject} {full[0].text}{link} {thing}?"
    return f"{'Do' if plural else 'Does'} {subject} {full[0].lemma}{link} {thing}?"


def _connecting(behind: list[Token]) -> list[Token]:
    """The verb and prepositions that lead to the next thing: what stands behind the last comma or 'and', places in the image left out.
    Empty where a new clause begins, or where a list goes on (', with a heart')."""
    words = _without_place(behind)
    cuts = [at for at, token in enumerate(words) if token.kind in (OTHER, CONJUNCTION)]
    led = words[cuts[-1] + 1 :] if cuts else words
    if any(token.tag in ("CJS", "CJT") for token in led):
        return []
    said = [token for token in led if token.kind in (VERB, PREPOSITION)]
    text = " ".join(token.text for token in said)
    listing = text in _LISTING and (text != "with" or bool(cuts))
    return [] if listing else said


def _place(behind: list[Token]) -> str:
    """'in the top left corner' where these words follow; '' for none."""
    start, end = _place_span(behind)
    return " ".join(token.text for token in behind[start:end])


def _without_place(behind: list[Token]) -> list[Token]:
    start, end = _place_span(behind)
    return behind[:start] + behind[end:]


def _place_span(behind: list[Token]) -> tuple[int, int]:
    """Where a preposition stands with words of place alone behind it; (0, 0) where none does."""
    for start, token in enumerate(behind):
        if token.kind != PREPOSITION:
            continue
        end = start + 1
        while end < len(behind) and (behind[end].kind == DETERMINER or behind[end].text in stop_words()) and behind[end].kind not in (CONJUNCTION, PREPOSITION):
            end += 1
        if any(word.text in _PLACES for word in behind[start + 1 : end]):
            return start, end
    return 0, 0


def _name(phrase: NounPhrase) -> str:
    """A thing with its colours and their shades: 'light blue car' of 'an old light blue car'; a proper name whole."""
    if phrase.tag == "NP0":
        return phrase.name
    return " ".join((*(word for at, word in enumerate(phrase.adjectives) if _is_color(phrase.adjectives, at)), *phrase.nouns))


def _properties(phrase: NounPhrase) -> list[str]:
    """The other adjectives, which can be asked by themselves."""
    words = phrase.adjectives if phrase.tag != "NP0" else ()
    return [word for at, word in enumerate(words) if not _is_color(words, at) and word not in _NO_PROPERTY and word not in stop_words()]


def _is_color(words: tuple[str, ...], at: int) -> bool:
    return words[at] in COLORS or (words[at] in _SHADES and at + 1 < len(words) and words[at + 1] in COLORS)


def _exists(phrase: NounPhrase, name: str) -> str:
    if phrase.tag == "NP0":
        return f"Does the image show {name}?"
    return f"{'Are' if _plural(phrase) else 'Is'} there {_with_article(phrase, name)} in the image?"


def _with_article(phrase: NounPhrase, name: str) -> str:
    if _plural(phrase) or phrase.lemma in _MASS | COLORS or phrase.tag == "NP0":
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _plural(phrase: NounPhrase) -> bool:
    return phrase.tag == "NN2" and phrase.determiner not in _SINGULAR
