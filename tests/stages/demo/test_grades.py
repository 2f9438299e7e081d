"""The rule of the four scores, on texts graded by hand."""

from __future__ import annotations

import pytest

from stages.demo.grades import ASPECTS, QUALITY, grade
from stages.demo.scenes import Scene, SceneObject

# 9 details: five of the striped star, four of the solid circle
SCENE = Scene(1, "sand", (
    SceneObject("star", "red", "striped", "large", "top left"),
    SceneObject("circle", "blue", "solid", "small", "right"),
))


@pytest.mark.parametrize(("text", "kind", "expected"), [
    ("A large red striped star in the top left corner and a small blue circle on the right, on sand.", "caption", (100, 100, 100, 60)),
    ("a red star", "caption", (100, 22, 63, 20)),  # 2 of 9 details
    ("a green star on sand", "caption", (50, 0, 65, 20)),  # one of two statements; half of 20 + 20
    ("a small red star", "caption", (50, 22, 64, 10)),
    ("a black heart on the sea", "caption", (0, 0, 66, 0)),
    ("two objects on sand", "caption", (100, 0, 64, 60)),
    ("IMG_3412.JPG", "file_name", (0, 0, 5, 5)),
    ("click here to enlarge image 77", "boilerplate", (0, 0, 25, 5)),
    ("", "empty", (0, 0, 0, 5)),
    ("ein roter Stern auf Sand", "other_language", (50, 25, 40, 20)),
    ("red-star", "one_word", (100, 11, 20, 20)),  # the hyphen hides the colour: one true statement, one detail
])
def test_score_by_hand(text: str, kind: str, expected: tuple[int, ...]) -> None:
    assert tuple(grade(text, kind, SCENE)[aspect] for aspect in ASPECTS) == expected


def test_quality_does_not_depend_on_the_scene_and_matching_not_on_the_form() -> None:
    other = Scene(2, "sea", (SceneObject("heart", "pink", "solid", "small", "center"),))
    text = "a large red star on sand"
    assert grade(text, "caption", SCENE)["caption_text_quality"] == grade(text, "caption", other)["caption_text_quality"]
    plain, formed = grade(text, "caption", SCENE), grade("A" + text[1:] + ".", "caption", SCENE)
    assert plain["image_text_matching"] == formed["image_text_matching"]
    assert formed["caption_text_quality"] == plain["caption_text_quality"] + 20


def test_every_spoiled_kind_is_graded_below_the_plainest_caption() -> None:
    assert max(QUALITY.values()) < grade("a star", "caption", SCENE)["caption_text_quality"]
