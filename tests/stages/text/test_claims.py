"""Claims of captions as questions: each kind, what belongs to what, and that no object of a rendered scene's caption goes unasked."""

from __future__ import annotations

import re

import numpy as np
import pytest

from stages.demo.alt_texts import change_attribute
from stages.demo.captions import COLOR_WORDS, SHAPE_WORDS, heldout_pairs
from stages.text.claims import KINDS, claims_of


def asked(caption: str, *kinds: str) -> list[str]:
    return [claim.question for claim in claims_of(caption, kinds or KINDS)]


def test_a_caption_becomes_questions_about_things_attributes_and_relations() -> None:
    assert [(claim.kind, claim.claim, claim.question) for claim in claims_of("An old white cat sleeps on a blue chair near the window.")] == [
        ("object", "white cat", "Is there a white cat in the image?"),
        ("attribute", "white cat: old", "Is the white cat old?"),
        ("object", "blue chair", "Is there a blue chair in the image?"),
        ("object", "window", "Is there a window in the image?"),
        ("relation", "white cat sleeps on blue chair", "Does the white cat sleep on the blue chair?"),
        ("relation", "blue chair near window", "Is the blue chair near the window?"),
    ]


@pytest.mark.parametrize(
    ("caption", "kind", "questions"),
    [
        ("Two young women wearing striped shirts sit at a table.", "number", ["Are there two women in the image?"]),
        ("Two young women wearing shirts sit at a table.", "relation", ["Are the women wearing the shirts?", "Do the women sit at the table?"]),
        ("A man in a black hat feeds pigeons.", "relation", ["Is the man in the black hat?", "Does the man feed the pigeons?"]),
        ("The mountains are reflected in a calm lake at dawn.", "relation", ["Are the mountains reflected in the lake?"]),
        ("The dog has a collar.", "relation", ["Does the dog have a collar?"]),
        ("a bowl of strawberries", "relation", ["Is there a bowl of strawberries in the image?"]),
        ("a red ring to the left of a blue star", "relation", ["Is the red ring to the left of the blue star?"]),
        ("a red ring larger than a blue star", "relation", ["Is the red ring larger than the blue star?"]),
        ("a red ring, together with a blue star", "relation", []),
        ("a red ring and a blue star", "relation", []),
        ("the dog sleeps while the cat eats fish", "relation", ["Does the cat eat the fish?"]),
        ("a red ring with dots at the top and a blue star on the left", "place", ["Is the red ring at the top?", "Is the blue star on the left?"]),
        ("a red ring and a star on a light blue background", "scene", ["Is this picture on a light blue background?"]),
        ("a red ring at the top, on grid paper", "scene", ["Is this picture on grid paper?"]),
        ("a red ring against plain white.", "scene", ["Is this picture against plain white?"]),
        ("British Columbia in Canada", "object", ["Does the image show british columbia?", "Does the image show canada?"]),
        ("a photo of an umbrella and some sand", "object", ["Is there an umbrella in the image?", "Is there sand in the image?"]),
        ("a drawing of a house at night", "object", ["Is there a house in the image?"]),
        ("a single dark green tree", "attribute", []),
        ("a tall dark green tree", "attribute", ["Is the dark green tree tall?"]),
    ],
)
def test_questions_of_each_kind(caption: str, kind: str, questions: list[str]) -> None:
    assert asked(caption, kind) == questions


def test_every_object_of_a_rendered_scenes_caption_is_asked_with_its_colour() -> None:
    colors = "|".join(sorted({word for words in COLOR_WORDS.values() for word in words}))
    shapes = "|".join(sorted({word for words in SHAPE_WORDS.values() for word in words}))
    named = re.compile(rf"\b({colors})\b(?: (?:striped|dotted|spotted|polka-dot|checkered|checked))? ({shapes})\b")
    for _, caption in heldout_pairs(100):
        found = {f"{color} {shape}" for color, shape in named.findall(caption.lower())}
        assert found, caption
        objects = {claim.claim for claim in claims_of(caption, {"object"})}
        assert found <= objects, caption


def test_questions_are_distinct_limited_and_none_for_texts_that_say_nothing() -> None:
    assert asked("a cat and a cat") == ["Is there a cat in the image?"]
    assert len(claims_of(", ".join(f"a {word} cat" for word in "old young tall small thin fat wet dry sad".split()), limit=7)) == 7
    assert [asked(text) for text in ("", "...", "nice one", "\u200f", "12345")] == [[]] * 5


def test_a_changed_attribute_changes_a_question() -> None:
    """What the rules lose before any model is asked: of the captions with one wrong attribute those that ask the same as the true one."""
    lost = []
    for scene, caption in heldout_pairs(150):
        changed = change_attribute(caption, scene, np.random.default_rng(scene.seed))
        if changed is not None and set(asked(changed)) <= set(asked(caption)):
            lost.append((caption, changed))
    assert len(lost) <= 1, lost
