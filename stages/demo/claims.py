"""The statements that an English text makes about a rendered scene, found by its words, and whether each is true.

A statement is an object ('red circle': is there one?), a further attribute of it (texture, size, place), a relation between
two neighbouring objects of the text, the number of objects, or the background. What is said of an object that does not
exist is false. Two statements of one kind and place are one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from stages.demo.captions import (
    BACKGROUND_PHRASES,
    COLOR_WORDS,
    NUMBERS,
    POSITION_PHRASES,
    SHAPE_WORDS,
    SIZE_WORDS,
    TEXTURE_ADJECTIVES,
    TEXTURE_PHRASES,
)
from stages.demo.scenes import Scene, SceneObject

RELATIONS: Final[dict[str, tuple[str, ...]]] = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "higher than"),
    "below": ("below", "lower than"),
}


@dataclass(frozen=True)
class Claim:
    """One statement: its kind, its place in the text (characters), its truth, and the object of the scene that it means."""

    kind: str
    start: int
    end: int
    true: bool
    item: SceneObject | None = None


def _by_word(table: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {word: name for name, words in table.items() for word in words}


def _any_of(words: object) -> str:
    return "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in sorted(words, key=len, reverse=True))  # type: ignore[call-overload]


_SHAPES, _COLORS, _SIZES = _by_word(SHAPE_WORDS), _by_word(COLOR_WORDS), _by_word(SIZE_WORDS)
_ADJECTIVES, _ENDINGS = _by_word(TEXTURE_ADJECTIVES) | {"solid": "solid"}, _by_word(TEXTURE_PHRASES)
_PLACES, _GROUNDS, _SIDES = _by_word(POSITION_PHRASES), _by_word(BACKGROUND_PHRASES), _by_word(RELATIONS)
_OBJECT: Final = re.compile(
    rf"(?P<before>(?:\b(?:{_any_of({**_COLORS, **_SIZES, **_ADJECTIVES})})\b\s+)*)\b(?P<shape>{_any_of(_SHAPES)})\b"
    rf"(?:\s+(?P<ending>{_any_of(_ENDINGS)})\b)?(?:\s+(?P<place>{_any_of(_PLACES)})\b)?", re.IGNORECASE,
)
_WORD: Final = re.compile(_any_of({**_COLORS, **_SIZES, **_ADJECTIVES}), re.IGNORECASE)
_RELATION: Final = re.compile(rf"\s+(?P<side>{_any_of(_SIDES)})\s+(?:an?|the)\s+", re.IGNORECASE)
_GROUND: Final = re.compile(rf"\b(?:{_any_of(_GROUNDS)})\b", re.IGNORECASE)
_NUMBER: Final = re.compile(rf"\b(?P<number>{_any_of(NUMBERS[1:])})\s+(?:shapes?|objects?)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Mention:
    """An object as a text names it: attributes by kind (canonical names), where each stands, and where the whole ends."""

    found: dict[str, tuple[str, int, int]]
    start: int
    end: int

    def meant(self, scene: Scene) -> SceneObject | None:
        """The object of that shape and, where one is named, colour; None if there is none."""
        color, shape = self.found.get("color"), self.found["shape"][0]
        return next((o for o in scene.objects if o.shape == shape and (not color or o.color == color[0])), None)


def mentions(text: str) -> list[Mention]:
    """The objects that a text names, in order."""
    return [_mention(match) for match in _OBJECT.finditer(text)]


def named_objects(text: str) -> set[tuple[str, str]]:
    """Colour and shape of the objects that a text names; without a colour the shape counts with colour ''."""
    return {(m.found["color"][0] if "color" in m.found else "", m.found["shape"][0]) for m in mentions(text)}


def _mention(match: re.Match[str]) -> Mention:
    found: dict[str, tuple[str, int, int]] = {}
    for word in _WORD.finditer(match["before"]):
        name, start = word[0].lower(), match.start("before") + word.start()
        for kind, table in (("color", _COLORS), ("size", _SIZES), ("texture", _ADJECTIVES)):
            if name in table:
                found[kind] = (table[name], start, start + len(name))
    found["shape"] = (_SHAPES[_plain(match["shape"])], *match.span("shape"))
    if match["ending"]:
        found["texture"] = (_ENDINGS[_plain(match["ending"])], *match.span("ending"))
    if match["place"]:
        found["position"] = (_PLACES[_plain(match["place"])], *match.span("place"))
    return Mention(found, match.start() + len(match["before"]) - len(match["before"].lstrip()), match.end())


def _plain(words: str) -> str:
    return " ".join(words.lower().split())


def find_claims(text: str, scene: Scene) -> list[Claim]:
    """All statements of a text about a scene, in order of where they end."""
    named = mentions(text)
    claims = [claim for mention in named for claim in _object_claims(mention, scene)]
    for first, second in zip(named, named[1:], strict=False):
        relation = _RELATION.fullmatch(text[first.end:second.start])
        if relation:
            true = _related(first.meant(scene), _SIDES[_plain(relation["side"])], second.meant(scene))
            claims.append(Claim("relation", first.end, second.end, true))
    for match in _GROUND.finditer(text):
        claims.append(Claim("background", *match.span(), _GROUNDS[_plain(match[0])] == scene.background))
    for match in _NUMBER.finditer(text):
        claims.append(Claim("number", *match.span(), NUMBERS.index(match["number"].lower()) == len(scene.objects)))
    return sorted(claims, key=lambda claim: (claim.end, claim.start))


def _object_claims(mention: Mention, scene: Scene) -> list[Claim]:
    item = mention.meant(scene)
    claims = [Claim("object", mention.start, mention.found["shape"][2], item is not None, item)]
    for kind in ("size", "texture", "position"):
        if kind in mention.found:
            value, _, end = mention.found[kind]
            claims.append(Claim(kind, mention.start, max(end, claims[0].end), item is not None and getattr(item, kind) == value, item))
    return claims


def _related(first: SceneObject | None, side: str, second: SceneObject | None) -> bool:
    if first is None or second is None:
        return False
    (row, column), (other_row, other_column) = first.cell, second.cell
    return {"left": column < other_column, "right": column > other_column, "above": row < other_row, "below": row > other_row}[side]
