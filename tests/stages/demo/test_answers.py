"""The texts that the bundled MLLM is taught: true, inside their windows, of known words."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import open_clip
import pytest

import stages.pretrain
from stages.demo import answers
from stages.demo.claims import find_claims, mentions
from stages.demo.scenes import Scene, draw_scene
from stages.demo.streams import seed_for
from stages.pretrain.nets.word_tokenizer import word_tokenizer

SCENES = [draw_scene(seed_for("heldout", index)) for index in range(300)]
WORDS = (Path(stages.pretrain.__file__).parent / "recipes" / "rendered_words.txt").read_text(encoding="utf-8").split()
MADE = {
    "short": answers.short_caption, "descriptive": answers.descriptive_caption, "dense": answers.dense_caption, "tags": answers.tag_list,
}


@pytest.fixture(scope="module")
def clip_tokens():
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    return lambda text: len(tokenizer.encode(text))


@pytest.mark.parametrize("name", MADE)
def test_everything_said_is_true_and_every_word_is_one_token(name: str) -> None:
    tokenizer = word_tokenizer(WORDS)
    for scene in SCENES:
        text = MADE[name](scene)
        assert all(claim.true for claim in find_claims(text, scene)), text
        tokens = tokenizer.tokenize(text)
        assert not [token for token in tokens if token.startswith(("##", "<|"))], tokens
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("name", ["descriptive", "dense", "tags"])
def test_all_objects_are_named(name: str) -> None:
    for scene in SCENES:
        named = {(m.found["color"][0], m.found["shape"][0]) for m in mentions(MADE[name](scene))}
        assert named == {(item.color, item.shape) for item in scene.objects}


def test_lengths_lie_in_the_windows_of_the_formats(clip_tokens) -> None:
    for scene in SCENES:
        assert 10 <= clip_tokens(answers.short_caption(scene)) <= 15
        assert 40 <= clip_tokens(answers.descriptive_caption(scene)) <= 60
        length = clip_tokens(answers.dense_caption(scene))
        assert length > 100 if len(scene.objects) >= 4 else length > 30


def test_fused_caption_begins_with_what_the_text_rightly_names() -> None:
    for scene in [scene for scene in SCENES if len(scene.objects) > 2][:50]:
        last = answers.in_reading_order(scene)[-1]
        wrong = "a purple ring" if ("purple", "ring") not in [(o.color, o.shape) for o in scene.objects] else "a pink heart"
        fused = answers.fused_caption(scene, f"{wrong} and a {last.color} {last.shape}")
        first = mentions(fused)[0]
        assert first.meant(scene) == last
        assert {m.meant(scene) for m in mentions(fused)} == set(scene.objects)
        merged = answers.merged_caption(scene, f"a {last.color} {last.shape}")
        assert mentions(merged)[0].meant(scene) == last and merged.count(".") == 1


def true_of(asked: str, scene: Scene) -> bool:
    """Whether a yes/no question is to be answered with yes, read from its words."""
    claims = find_claims(asked.replace("Is there only one object", "one object").replace("?", " ?"), scene)
    if asked.startswith("Is the "):
        for word, kind, value in (("small", "size", "small"), ("medium", "size", "medium"), ("large", "size", "large"), ("solid", "texture", "solid"),
                                  ("striped", "texture", "striped"), ("dotted", "texture", "dotted"), ("checkered", "texture", "checkered")):
            if asked.endswith(f" {word}?"):
                item = mentions(asked)[0].meant(scene)
                return item is not None and getattr(item, kind) == value
    return bool(claims) and all(claim.true for claim in claims)


def test_questions_are_answered_by_the_scene_and_half_of_them_with_yes() -> None:
    counted: Counter[str] = Counter()
    for number, scene in enumerate(SCENES * 3):
        asked, answer = answers.question(scene, np.random.default_rng(number))
        counted[answer] += 1
        assert true_of(asked, scene) == (answer == "yes"), (asked, answer, scene)
    assert abs(counted["yes"] - 450) < 3 * 15  # three standard deviations of 900 fair draws
