"""Alt-texts of known kind: a changed one is wrong in one place, an injected one says what its twin says."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from stages.demo import alt_texts
from stages.demo.captions import caption_for
from stages.demo.claims import find_claims, mentions
from stages.demo.grades import QUALITY, grade
from stages.demo.scenes import draw_scene
from stages.demo.streams import STREAM_LENGTH, seed_for

SCENES = [draw_scene(seed_for("heldout", index)) for index in range(300)]


def test_a_changed_attribute_leaves_all_else_and_makes_something_false() -> None:
    for number, scene in enumerate(SCENES):
        text = caption_for(scene)
        changed = alt_texts.change_attribute(text, scene, np.random.default_rng(number))
        assert changed is not None and not all(claim.true for claim in find_claims(changed, scene))
        before, after = ([{k: v[0] for k, v in m.found.items()} for m in mentions(t)] for t in (text, changed))
        assert sum(a[kind] != b[kind] for a, b in zip(before, after, strict=True) for kind in a) == 1
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", changed), changed  # grammar gives nothing away


def test_only_the_kinds_asked_for_are_changed() -> None:
    scene = next(scene for scene in SCENES if "large" in caption_for(scene))
    changed = alt_texts.change_attribute(caption_for(scene), scene, np.random.default_rng(0), ("size",))
    assert changed and [c.kind for c in find_claims(changed, scene) if not c.true] == ["size"]
    assert alt_texts.change_attribute("a picture", scene, np.random.default_rng(0)) is None


def test_injections_add_no_statement_about_the_scene() -> None:
    for injection in alt_texts.INJECTIONS:
        assert find_claims(injection, SCENES[0]) == []
    for number, scene in enumerate(SCENES[:100]):
        text = caption_for(scene)
        injected = alt_texts.inject(text, np.random.default_rng(number))
        assert text in injected and injected != text
        assert [c.true for c in find_claims(injected, scene)] == [c.true for c in find_claims(text, scene)]


def test_a_drawn_text_is_graded_by_its_content_and_comes_in_all_kinds() -> None:
    kinds: Counter[str] = Counter()
    matching: Counter[str] = Counter()
    for number in range(1500):
        scene = SCENES[number % 300]
        drawn = alt_texts.draw_alt_text(scene, np.random.default_rng(number))
        kinds[drawn.kind] += 1
        assert drawn.content.strip() in drawn.text
        score = grade(drawn.content, drawn.kind, scene)["image_text_matching"]
        matching["true" if score == 100 else "none" if score == 0 else "between"] += 1
    assert set(kinds) == {"caption", "other_language", *QUALITY}
    assert min(matching.values()) > 300


def test_another_scene_is_of_the_same_stream() -> None:
    other = alt_texts.another_scene(SCENES[0], np.random.default_rng(0))
    assert other.seed // STREAM_LENGTH == SCENES[0].seed // STREAM_LENGTH and other.seed != SCENES[0].seed
