"""Alt-texts as the web writes them when it does not describe the image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from stages.demo.captions import caption_for
from stages.demo.languages import LANGUAGES, translate
from stages.demo.scenes import COLORS, SHAPES, Scene

BOILERPLATE_TEMPLATES: Final[tuple[str, ...]] = (
    "click here to enlarge image {n}",
    "click to view full size picture {n}",
    "stock photo id {n}",
    "royalty free stock image {n}",
    "image not available {n}",
    "no image available for product {n}",
    "photo coming soon for item {n}",
    "buy now free shipping on order {n}",
    "add to cart item {n}",
    "loading please wait {n}",
    "image may be subject to copyright {n}",
    "share on facebook share on twitter {n}",
)
"""A number keeps each text distinct: the boilerplate rule must fire, not the repeated-text rule."""

FILE_NAME_TEMPLATES: Final[tuple[str, ...]] = (
    "IMG_{n}.JPG",
    "DSC_{n}.jpg",
    "{color}_{shape}_final_{n}.png",
    "{color}-{shape}-{n}.webp",
    "Copy of picture {n} (1).jpg",
    "my {color} {shape} {n}.jpeg",
)
URL_TEMPLATES: Final[tuple[str, ...]] = (
    "https://www.shop.example/{color}-{shape}/{n}.html",
    "see https://cdn.example.net/p/{n}?w=640 for more",
    "www.pictures.example/{color}/{shape}/{n}",
)
LOW_LETTER_TEMPLATES: Final[tuple[str, ...]] = (
    "this was {n} / {m} -- {n} :: {m} ## 12/07/2019 99%",
    "this was $ {n}.99 -- (1) (2) (3) [{m}] 24/7 +++ {n}",
    "where is #{n} +++ {m} ::: 100 % 24/7 !!! {n}",
)
SHORT_WORDS: Final[tuple[str, ...]] = tuple(
    "red blue pink cyan star ring box disc hoop sand sea wood sun moon tree hill lake road rain snow leaf bird".split()
)
REPEATED_TEXT: Final = "our little gallery with many colorful shapes"


def boilerplate(rng: np.random.Generator) -> str:
    """A phrase of the page and not of the image."""
    return _fill(BOILERPLATE_TEMPLATES, rng)


def file_name(rng: np.random.Generator) -> str:
    """A file's name in place of a caption."""
    return _fill(FILE_NAME_TEMPLATES, rng)


def url_text(rng: np.random.Generator) -> str:
    """A text that is, or mostly is, a URL."""
    return _fill(URL_TEMPLATES, rng)


def low_letters(rng: np.random.Generator) -> str:
    """More than eight words, few letters."""
    return _fill(LOW_LETTER_TEMPLATES, rng)


def too_short(index: int) -> str:
    """Three or four letters; different for neighbouring indexes, so that no single text is carried by many rows."""
    return SHORT_WORDS[index % len(SHORT_WORDS)]


def one_word(index: int) -> str:
    """One word of five letters or more; different for neighbouring indexes."""
    words = [name for name in (*COLORS, *SHAPES) if len(name) >= 5]
    words += [f"{color}-{shape}" for color in COLORS for shape in SHAPES]
    return words[index % len(words)]


def empty(index: int) -> str | None:
    """Nothing, said in the three ways in which tables say it."""
    return ("", None, "  ")[index % 3]


def repetition(rng: np.random.Generator) -> str:
    """The same few words again and again, English enough to pass language identification."""
    phrase = _any(("the best {color} {shape}", "this {color} {shape}"), rng)
    return " ".join([phrase.format(color=_any(COLORS, rng), shape=_any(SHAPES, rng))] * int(rng.integers(5, 10)))


def other_language(scene: Scene, rng: np.random.Generator) -> str:
    """A true caption, but not in English."""
    return translate(scene, rng, _any(LANGUAGES, rng))


def mismatch_donor(scene: Scene, candidates: list[Scene]) -> Scene:
    """The first candidate whose every caption is false of the scene: no common colour and shape, other background.

    Raises:
        ValueError: no candidate differs enough; give more of them.
    """
    facts = {(item.color, item.shape) for item in scene.objects}
    for other in candidates:
        if other.background != scene.background and facts.isdisjoint((o.color, o.shape) for o in other.objects):
            return other
    raise ValueError(f"scene {scene.seed}: none of {len(candidates)} candidate scenes differs; give more candidates")


def mismatched_caption(scene: Scene, candidates: list[Scene]) -> str:
    """A true caption of another scene that is false of this one."""
    return caption_for(mismatch_donor(scene, candidates))


def _any(table: Iterable[str], rng: np.random.Generator) -> str:
    names = list(table)
    return names[int(rng.integers(len(names)))]


def _fill(templates: tuple[str, ...], rng: np.random.Generator) -> str:
    n, m = (int(v) for v in rng.integers(1000, 99999, size=2))
    return _any(templates, rng).format(n=n, m=m, color=_any(COLORS, rng), shape=_any(SHAPES, rng))
