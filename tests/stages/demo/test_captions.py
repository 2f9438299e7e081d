"""Captions are read back by a small grammar written apart from the generator, and compared with the scene."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import py3langid
import pytest

from stages.demo.captions import caption, caption_for, heldout_pairs, true_phrases
from stages.demo.languages import LANGUAGES, translate
from stages.demo.scenes import Scene, SceneObject, draw_scene
from stages.demo.streams import STREAM_LENGTH, STREAMS, seed_for

SHAPES = {
    "circle": "circle", "disc": "circle", "square": "square", "box": "square", "triangle": "triangle", "star": "star",
    "heart": "heart", "diamond": "diamond", "rhombus": "diamond", "cross": "cross", "plus sign": "cross",
    "ring": "ring", "hoop": "ring",
}  # fmt: skip
COLORS = {
    name: name for name in ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "white")
}
COLORS |= {"black": "black", "turquoise": "cyan", "violet": "purple"}
TEXTURES = {
    "striped": "striped", "dotted": "dotted", "spotted": "dotted", "polka-dot": "dotted", "checkered": "checkered",
    "checked": "checkered", "with stripes": "striped", "with dots": "dotted", "with checks": "checkered",
}  # fmt: skip
SIZES = {
    "small": "small", "little": "small", "tiny": "small", "medium": "medium", "medium-sized": "medium",
    "large": "large", "big": "large", "huge": "large",
}  # fmt: skip
CELLS = {
    "in the top left corner": (0, 0), "at the upper left": (0, 0), "at the top": (0, 1), "in the top middle": (0, 1),
    "in the top right corner": (0, 2), "at the upper right": (0, 2), "on the left": (1, 0), "at the left edge": (1, 0),
    "in the center": (1, 1), "in the middle": (1, 1), "on the right": (1, 2), "at the right edge": (1, 2),
    "in the bottom left corner": (2, 0), "at the lower left": (2, 0), "at the bottom": (2, 1),
    "in the bottom middle": (2, 1), "in the bottom right corner": (2, 2), "at the lower right": (2, 2),
}  # fmt: skip
BACKGROUNDS = {
    "white background": "white", "plain white": "white", "gray background": "gray", "plain gray": "gray",
    "light blue background": "light blue", "pale blue": "light blue", "sunset": "sunset", "evening sky": "sunset",
    "green meadow": "meadow", "above grass": "meadow", "night sky": "night", "starry sky": "night", "on sand": "sand",
    "sandy beach": "sand", "grid paper": "grid paper", "squared paper": "grid paper", "wooden": "wood",
    "on the sea": "sea", "blue waves": "sea",
}  # fmt: skip
RELATIONS = {
    "left of": (0, -1), "to the left of": (0, -1), "right of": (0, 1), "to the right of": (0, 1), "above": (-1, 0),
    "higher than": (-1, 0), "below": (1, 0), "lower than": (1, 0),
}  # fmt: skip
COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5}


def any_of(words: dict[str, object]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


NOUN = re.compile(
    rf"\ban? (?:(?P<size>{any_of(SIZES)}) )?(?:(?P<t1>{any_of(TEXTURES)}) )?(?P<color>{any_of(COLORS)}) "
    rf"(?:(?P<t2>{any_of(TEXTURES)}) )?(?P<shape>{any_of(SHAPES)})(?: (?P<t3>with (?:stripes|dots|checks)))?"
    rf"(?: (?P<cell>{any_of(CELLS)}))?(?: (?P<relation>{any_of(RELATIONS)})(?= an? ))?"
)


@dataclass
class Mention:
    item: SceneObject
    relation: str | None


def read_back(text: str, scene: Scene) -> list[Mention]:
    """The objects that a caption mentions; fails where a statement about one is false."""
    mentions = []
    by_name = {(item.color, item.shape): item for item in scene.objects}
    for found in NOUN.finditer(text.lower()):
        name = COLORS[found["color"]], SHAPES[found["shape"]]
        assert name in by_name, f"no {name} in {scene}: {text}"
        item = by_name[name]
        texture = found["t1"] or found["t2"] or found["t3"]
        assert texture is None or TEXTURES[texture] == item.texture, text
        assert found["size"] is None or SIZES[found["size"]] == item.size, text
        assert found["cell"] is None or CELLS[found["cell"]] == item.cell, text
        mentions.append(Mention(item, found["relation"]))
    return mentions


def drawn_captions(count: int) -> list[tuple[Scene, str]]:
    scenes = [draw_scene(seed_for("train_eval", index)) for index in range(count)]
    return [(scene, caption_for(scene)) for scene in scenes]


CAPTIONS = drawn_captions(3000)


def test_every_statement_about_objects_is_true() -> None:
    textures = sizes = cells = 0
    for scene, text in CAPTIONS:
        mentions = read_back(text, scene)
        assert mentions, text
        assert len({id(m.item) for m in mentions}) == len(mentions), f"one object is told twice: {text}"
        sizes += any(word in text.split() for word in SIZES)
        textures += any(word in text for word in TEXTURES)
        cells += any(phrase in text for phrase in CELLS)
    assert min(sizes, textures, cells) > 300, "captions must make a model look at size, texture and position"


def test_relations_and_counts_are_true() -> None:
    told = {"relations": 0, "counts": 0}
    for scene, text in CAPTIONS:
        mentions = read_back(text, scene)
        for index, mention in enumerate(mentions):
            if mention.relation is None:
                continue
            down, right = RELATIONS[mention.relation]
            (row, column), (other_row, other_column) = mention.item.cell, mentions[index + 1].item.cell
            assert (row - other_row) * down > 0 or (column - other_column) * right > 0, (scene, text)
            told["relations"] += 1
        counted = re.search(r"\b(two|three|four|five) (?:shapes|objects):", text.lower())
        if counted:
            assert COUNTS[counted[1]] == len(scene.objects) == len(mentions), text
            told["counts"] += 1
    assert told["relations"] > 200 and told["counts"] > 100, told


def test_backgrounds_are_true() -> None:
    told = 0
    for scene, text in CAPTIONS:
        named = {background for phrase, background in BACKGROUNDS.items() if phrase in text.lower()}
        assert named <= {scene.background}, (scene, text)
        told += bool(named)
    assert told > len(CAPTIONS) / 3


def test_captions_are_plain_english_of_5_to_40_words_and_mostly_tell_all() -> None:
    complete = 0
    for scene, text in CAPTIONS:
        assert text.isascii() and text.isprintable()
        assert 5 <= len(text.split()) <= 40, text
        assert "  " not in text and not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
        complete += len(read_back(text, scene)) == len(scene.objects)
    assert complete / len(CAPTIONS) > 0.8
    english = sum(py3langid.classify(text)[0] == "en" for _, text in CAPTIONS[:500])
    assert english >= 495


def test_a_caption_is_a_function_of_scene_and_generator() -> None:
    scene = draw_scene(99)
    assert caption(scene, np.random.default_rng(5)) == caption(scene, np.random.default_rng(5))
    assert caption_for(scene) == caption_for(scene)
    assert len({caption_for(scene, variant) for variant in range(20)}) > 10


def test_true_phrases_name_each_object() -> None:
    scene = draw_scene(4)
    assert true_phrases(scene) == [f"{item.color} {item.shape}" for item in scene.objects]


def test_heldout_pairs_have_no_two_equal_captions_and_stay_in_their_stream() -> None:
    pairs = heldout_pairs(1000)
    assert len({text for _, text in pairs}) == len(pairs) == 1000
    assert all(scene.seed // STREAM_LENGTH == STREAMS["heldout"] for scene, _ in pairs)
    assert pairs[:50] == heldout_pairs(50)
    other = heldout_pairs(50, seed=1)
    assert {scene.seed for scene, _ in other}.isdisjoint(scene.seed for scene, _ in pairs)
    with pytest.raises(ValueError, match="seed -1"):
        heldout_pairs(1, seed=-1)


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_other_languages_are_known_for_what_they_are(language: str) -> None:
    rng = np.random.default_rng(0)
    texts = [translate(draw_scene(seed), rng, language) for seed in range(150)]
    right = sum(py3langid.classify(text)[0] == language for text in texts)
    assert right >= 149, [text for text in texts if py3langid.classify(text)[0] != language]


def test_translations_agree_in_gender_and_name_what_is_there() -> None:
    star = SceneObject(shape="star", color="red", texture="striped", size="large", position="top left")
    scene = Scene(seed=0, background="sea", objects=(star,))
    rng = np.random.default_rng(0)
    assert "una estrella roja" in translate(scene, rng, "es")
    assert "roter Stern mit Streifen oben links" in translate(scene, rng, "de")
    assert "красная звезда в полоску вверху слева" in translate(scene, rng, "ru")
    assert "漂在海面上" in translate(scene, rng, "zh")
    with pytest.raises(KeyError, match="no word table; known: de"):
        translate(scene, rng, "xx")
