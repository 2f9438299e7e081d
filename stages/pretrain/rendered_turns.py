"""Which requests are made about a rendered scene in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from stages.demo import answers
from stages.demo.alt_texts import AltText, draw_alt_text
from stages.demo.claims import find_claims
from stages.demo.grades import ASPECTS, grade
from stages.demo.scenes import Scene
from stages.pretrain.dialogue import NOWHERE, Turn

_PLAIN: Final[dict[str, Callable[[Scene], str]]] = {
    "caption_short": answers.short_caption,
    "caption_descriptive": answers.descriptive_caption,
    "caption_dense": answers.dense_caption,
    "caption_brief": answers.short_caption,
    "caption_plain": answers.short_caption,
    "caption_long": answers.dense_caption,
    "tags": answers.tag_list,
}
_WITH_TEXT: Final[dict[str, Callable[[Scene, str], str]]] = {
    "caption_fused": answers.fused_caption,
    "caption_merged": answers.merged_caption,
}


def first_turns(scene: Scene, rng: np.random.Generator) -> tuple[Turn, ...]:
    """The first lesson in speaking: every object with its place (a dense caption without relations), tags, how well one text matches."""
    places = Turn("caption_dense", answers.dense_caption(scene, relations=False))
    return places, plain_turn("tags", scene), *score_turns(draw_alt_text(scene, rng), scene, ASPECTS[:1])


def all_turns(scene: Scene, rng: np.random.Generator) -> tuple[Turn, ...]:
    """The full mix: one kind of caption, two judged texts, a question. Sequences of nearly one length leave little padding."""
    first = draw_alt_text(scene, rng)
    captions = _caption_turns(scene, rng, first)
    scores = score_turns(first, scene, _aspects(rng)) + score_turns(draw_alt_text(scene, rng), scene, ASPECTS[:1])
    return (*captions, *scores, question_turn(scene, rng))


def judge_turns(scene: Scene, rng: np.random.Generator) -> tuple[Turn, ...]:
    """What needs most lessons, telling a wrong word from the right one: three judged texts and two questions beside a caption."""
    first, *others = (draw_alt_text(scene, rng) for _ in range(3))
    scores = score_turns(first, scene, _aspects(rng)) + [turn for alt in others for turn in score_turns(alt, scene, ASPECTS[:1])]
    return (*_caption_turns(scene, rng, first), *scores, question_turn(scene, rng), question_turn(scene, rng))


def ask_turns(scene: Scene, rng: np.random.Generator) -> tuple[Turn, ...]:
    """Questions: ten of them share one image, six about size, texture or place. A caption and a judged text keep the rest in mind."""
    alt = draw_alt_text(scene, rng)
    asked = [question_turn(scene, rng) for _ in range(4)] + [question_turn(scene, rng, answers.attribute_question) for _ in range(6)]
    return (*_caption_turns(scene, rng, alt), *score_turns(alt, scene, _aspects(rng)), *asked)


def _caption_turns(scene: Scene, rng: np.random.Generator, alt: AltText) -> list[Turn]:
    names = list(_SHARES)
    asked = names[int(rng.choice(len(names), p=np.array(list(_SHARES.values())) / sum(_SHARES.values())))]
    return [text_turn(name, alt, scene) if name in _WITH_TEXT else plain_turn(name, scene) for name in asked.split()]


_SHARES: Final = {
    "caption_dense": 0.42, "caption_descriptive": 0.18, "caption_short tags": 0.18, "caption_fused": 0.12, "caption_merged": 0.04,
    "caption_brief tags": 0.02, "caption_plain tags": 0.02, "caption_long": 0.02,
}
MIXES: Final[dict[str, Callable[[Scene, np.random.Generator], tuple[Turn, ...]]]] = {
    "first": first_turns, "all": all_turns, "judge": judge_turns, "ask": ask_turns,
}  # fmt: skip
"""What a phase of the recipe may name."""


def plain_turn(name: str, scene: Scene) -> Turn:
    """A caption or the tags, from the image alone."""
    return Turn(name, _PLAIN[name](scene))


def text_turn(name: str, alt: AltText, scene: Scene) -> Turn:
    """A caption made from image and alt-text (for the merged one, from a caption and tags as well)."""
    fields = {"alt_text": alt.text}
    if name == "caption_merged":
        fields |= {"caption": answers.short_caption(scene), "tags": answers.tag_list(scene)}
    return Turn(name, _WITH_TEXT[name](scene, alt.content), fields)


def question_turn(scene: Scene, rng: np.random.Generator, draw: Callable[[Scene, np.random.Generator], tuple[str, str]] = answers.question) -> Turn:
    asked, answer = draw(scene, rng)
    return Turn("question", answer, {"question": asked}, _claims(asked, scene))


def score_turns(alt: AltText, scene: Scene, aspects: tuple[str, ...] = ASPECTS) -> list[Turn]:
    """The scores of one text, with the truth of its statements."""
    scores = grade(alt.content, alt.kind, scene)
    claims = _claims(alt.text, scene) if alt.kind == "caption" else ()
    return [Turn(f"score_{aspect}", str(scores[aspect]), {"alt_text": alt.text}, claims) for aspect in aspects]


def _claims(text: str, scene: Scene) -> tuple[tuple[int, int, bool, int], ...]:
    found = []
    for claim in find_claims(text, scene):
        means_object = claim.kind not in ("relation", "background", "number")
        cell = claim.item.cell[0] * 3 + claim.item.cell[1] if claim.item else NOWHERE if means_object else -1
        found.append((claim.start, claim.end, claim.true, cell))
    return tuple(found)


def _aspects(rng: np.random.Generator) -> tuple[str, ...]:
    """Image-text matching always, each other aspect in a third of the draws."""
    return tuple(aspect for number, aspect in enumerate(ASPECTS) if number == 0 or rng.random() < 1 / 3)
