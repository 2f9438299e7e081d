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
from stages.pretrain.dialogue import Turn

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
    """The first lesson in speaking: tags, a caption that names every object, and how well one text matches."""
    caption = ("caption_dense", "caption_descriptive")[int(rng.integers(2))]
    return plain_turn("tags", scene), plain_turn(caption, scene), *score_turns(draw_alt_text(scene, rng), scene, ASPECTS[:1])


def all_turns(scene: Scene, rng: np.random.Generator) -> tuple[Turn, ...]:
    """The full mix: captions of all formats, two judged texts, a caption made from a text, questions."""
    turns = [plain_turn(name, scene) for name, chance in _SHARES.items() if rng.random() < chance]
    for _ in range(2):
        alt = draw_alt_text(scene, rng)
        turns += score_turns(alt, scene, _aspects(rng))
    if rng.random() < 0.25:
        name = "caption_fused" if rng.random() < 0.8 else "caption_merged"
        turns.append(text_turn(name, draw_alt_text(scene, rng), scene))
    turns += [question_turn(scene, rng) for _ in range(2)]
    return tuple(turns)


_SHARES: Final = {
    "caption_dense": 0.4, "caption_descriptive": 0.4, "caption_short": 0.3, "tags": 0.4,
    "caption_brief": 0.04, "caption_plain": 0.04, "caption_long": 0.04,
}
MIXES: Final[dict[str, Callable[[Scene, np.random.Generator], tuple[Turn, ...]]]] = {"first": first_turns, "all": all_turns}
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


def question_turn(scene: Scene, rng: np.random.Generator) -> Turn:
    asked, answer = answers.question(scene, rng)
    return Turn("question", answer, {"question": asked})


def score_turns(alt: AltText, scene: Scene, aspects: tuple[str, ...] = ASPECTS) -> list[Turn]:
    """The scores of one text, with the truth of its statements."""
    scores = grade(alt.content, alt.kind, scene)
    claims = tuple((claim.start, claim.end, claim.true) for claim in find_claims(alt.text, scene)) if alt.kind == "caption" else ()
    return [Turn(f"score_{aspect}", str(scores[aspect]), {"alt_text": alt.text}, claims) for aspect in aspects]


def _aspects(rng: np.random.Generator) -> tuple[str, ...]:
    """Image-text matching always, each other aspect in half of the draws."""
    return tuple(aspect for number, aspect in enumerate(ASPECTS) if number == 0 or rng.random() < 0.5)
