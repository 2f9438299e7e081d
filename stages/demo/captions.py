"""True English captions of rendered scenes, in varied language.

Every statement is true of the scene: an object is described by attributes it has, relations and positions follow the
grid, counts are exact. What a caption mentions (all objects or some, size, position, background) is drawn.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from stages.demo.scenes import Scene, SceneObject, draw_scene
from stages.demo.streams import STREAM_LENGTH, seed_for

SHAPE_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "circle": ("circle", "circle", "disc"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "diamond": ("diamond", "diamond", "rhombus"),
    "cross": ("cross", "cross", "plus sign"),
    "ring": ("ring", "ring", "hoop"),
}
COLOR_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "cyan": ("cyan", "cyan", "turquoise"),
    "blue": ("blue",),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink",),
    "brown": ("brown",),
    "white": ("white",),
    "black": ("black",),
}
TEXTURE_ADJECTIVES: Final[dict[str, tuple[str, ...]]] = {
    "striped": ("striped",),
    "dotted": ("dotted", "spotted", "polka-dot"),
    "checkered": ("checkered", "checked"),
}
TEXTURE_PHRASES: Final[dict[str, tuple[str, ...]]] = {
    "striped": ("with stripes",),
    "dotted": ("with dots",),
    "checkered": ("with checks",),
}
SIZE_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "small": ("small", "small", "little", "tiny"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "large", "big", "huge"),
}
POSITION_PHRASES: Final[dict[str, tuple[str, ...]]] = {
    "top left": ("in the top left corner", "at the upper left"),
    "top": ("at the top", "in the top middle"),
    "top right": ("in the top right corner", "at the upper right"),
    "left": ("on the left", "at the left edge"),
    "center": ("in the center", "in the middle"),
    "right": ("on the right", "at the right edge"),
    "bottom left": ("in the bottom left corner", "at the lower left"),
    "bottom": ("at the bottom", "in the bottom middle"),
    "bottom right": ("in the bottom right corner", "at the lower right"),
}
BACKGROUND_PHRASES: Final[dict[str, tuple[str, ...]]] = {
    "white": ("on a white background", "against plain white"),
    "gray": ("on a gray background", "against plain gray"),
    "light blue": ("on a light blue background", "against pale blue"),
    "sunset": ("in front of a sunset", "against an evening sky"),
    "meadow": ("over a green meadow", "above grass under a clear sky"),
    "night": ("in the night sky", "under a starry sky"),
    "sand": ("on sand", "lying on a sandy beach"),
    "grid paper": ("on grid paper", "drawn on squared paper"),
    "wood": ("on a wooden table", "on wooden boards"),
    "sea": ("on the sea", "floating on blue waves"),
}
OPENINGS: Final[tuple[str, ...]] = (
    "", "", "", "a photo of ", "a picture of ", "an image of ", "there is ", "this shows ", "we see ", "a drawing of ",
)  # fmt: skip
NUMBERS: Final[tuple[str, ...]] = ("zero", "one", "two", "three", "four", "five")
MAX_WORDS: Final = 40
MIN_WORDS: Final = 5


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A true caption of 5 to 40 words in printable ASCII; the generator picks template, synonyms and detail."""
    template = (_list_caption, _list_caption, _list_caption, _relation_caption, _position_caption)[rng.integers(5)]
    for detail in (1.0, 1.0, 0.5, 0.0):  # a long draw is made again with fewer details
        text = template(scene, rng, detail)
        if len(text.split()) <= MAX_WORDS:
            break
    if len(text.split()) < MIN_WORDS:
        text = f"{text} {_pick(BACKGROUND_PHRASES[scene.background], rng)}"
    if len(text.split()) < MIN_WORDS:
        text = f"a simple picture showing {text}"
    return _finish(text, rng)


def true_phrases(scene: Scene) -> list[str]:
    """Colour and shape of each object, such as 'red circle', in the scene's order."""
    return [f"{item.color} {item.shape}" for item in scene.objects]


def caption_for(scene: Scene, variant: int = 0) -> str:
    """The caption that a scene's own seed draws; variants are independent draws."""
    return caption(scene, np.random.Generator(np.random.PCG64([scene.seed, 2, variant])))


def heldout_pairs(n: int = 1000, seed: int = 0) -> list[tuple[Scene, str]]:
    """n evaluation pairs from the 'heldout' stream; no two captions are equal.

    Different values of seed read different stretches of the stream.
    """
    stretch = 1 << 24
    if not 0 <= seed < STREAM_LENGTH // stretch:
        raise ValueError(f"heldout_pairs: seed {seed} must be between 0 and {STREAM_LENGTH // stretch - 1}")
    pairs: dict[str, Scene] = {}
    index = seed * stretch
    while len(pairs) < n:
        scene = draw_scene(seed_for("heldout", index))
        pairs.setdefault(caption_for(scene), scene)
        index += 1
    return [(scene, text) for text, scene in pairs.items()]


def _pick(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def _with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _noun(item: SceneObject, rng: np.random.Generator, detail: float) -> str:
    """'large red striped circle': colour and shape always, texture unless solid, size as drawn."""
    color, shape = _pick(COLOR_WORDS[item.color], rng), _pick(SHAPE_WORDS[item.shape], rng)
    words, ending = [color, shape], ""
    if item.texture != "solid" and rng.random() < 0.95:
        style = rng.random()
        if style < 0.25 and detail == 1.0:
            ending = " " + _pick(TEXTURE_PHRASES[item.texture], rng)
        else:
            adjective = _pick(TEXTURE_ADJECTIVES[item.texture], rng)
            words.insert(0 if style < 0.5 else 1, adjective)
    if rng.random() < 0.6 * detail:
        words.insert(0, _pick(SIZE_WORDS[item.size], rng))
    return " ".join(words) + ending


def _join(phrases: list[str]) -> str:
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _shuffled(scene: Scene, rng: np.random.Generator) -> list[SceneObject]:
    return [scene.objects[int(index)] for index in rng.permutation(len(scene.objects))]


def _background_ending(scene: Scene, rng: np.random.Generator, chance: float) -> str:
    return " " + _pick(BACKGROUND_PHRASES[scene.background], rng) if rng.random() < chance else ""


def _list_caption(scene: Scene, rng: np.random.Generator, detail: float) -> str:
    """'a photo of a small red star, a blue ring and ... on sand'; now and then only some of the objects, or a count."""
    items = _shuffled(scene, rng)
    count, chance = len(items), float(rng.random())
    if count > 1 and chance < 0.15:
        items = items[: int(rng.integers(1, count))]
    nouns = _join([_with_article(_noun(item, rng, detail)) for item in items])
    if count > 1 and len(items) == count and chance > 0.85:
        return f"{NUMBERS[count]} {_pick(('shapes', 'objects'), rng)}: {nouns}{_background_ending(scene, rng, 0.7)}"
    return f"{_pick(OPENINGS, rng)}{nouns}{_background_ending(scene, rng, 0.7)}"


def _position_caption(scene: Scene, rng: np.random.Generator, detail: float) -> str:
    """'a red star at the top and a blue ring in the bottom left corner'."""
    items = _shuffled(scene, rng)
    chance = 0.75 if len(items) > 2 else 1.0
    phrases = []
    for item in items:
        phrase = _with_article(_noun(item, rng, detail))
        if rng.random() < chance * max(detail, 0.4):
            phrase += " " + _pick(POSITION_PHRASES[item.position], rng)
        phrases.append(phrase)
    ending = _background_ending(scene, rng, 0.5)
    return f"{_pick(OPENINGS, rng)}{_join(phrases)}{',' if ending else ''}{ending}"


def _relation_caption(scene: Scene, rng: np.random.Generator, detail: float) -> str:
    """'a red star to the left of a blue ring, with a green heart, on sand'; a scene of one object is placed."""
    items = _shuffled(scene, rng)
    if len(items) == 1:
        return _position_caption(scene, rng, detail)
    first, second, rest = items[0], items[1], items[2:]
    nouns = [_with_article(_noun(item, rng, detail)) for item in (first, second)]
    text = f"{_pick(OPENINGS, rng)}{nouns[0]} {_pick(_relations(first, second), rng)} {nouns[1]}"
    if rest:
        others = _join([_with_article(_noun(item, rng, detail)) for item in rest])
        text += f", {_pick(('and also', 'together with', 'with'), rng)} {others}"
    ending = _background_ending(scene, rng, 0.5)
    return f"{text}{',' if ending and rest else ''}{ending}"


def _relations(first: SceneObject, second: SceneObject) -> tuple[str, ...]:
    (row, column), (other_row, other_column) = first.cell, second.cell
    phrases: list[str] = []
    if column != other_column:
        phrases += ["left of", "to the left of"] if column < other_column else ["right of", "to the right of"]
    if row != other_row:
        phrases += ["above", "higher than"] if row < other_row else ["below", "lower than"]
    return tuple(phrases)


def _finish(text: str, rng: np.random.Generator) -> str:
    """As people write: some captions are sentences with a capital and a full stop, most are not."""
    style = rng.random()
    if style < 0.3:
        text = text[0].upper() + text[1:]
    return text + "." if style < 0.2 else text
