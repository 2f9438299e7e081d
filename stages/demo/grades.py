"""The four scores of a text about a rendered scene, 0 to 100, from the known truth by a written rule.

With the text's statements (stages/demo/claims.py), T of them true out of N:

- image_text_matching: 100 T / N; 0 where nothing is said of the scene.
- object_detail_fulfillment: of the details that the scene's objects have (colour, shape, size, place, and texture unless solid,
  five or four each), the share that the text states rightly; an object counts once.
- semantic_understanding: (T / N) x (20 + 20 for each of background, number, place and relation that the text speaks of);
  5 where nothing is said of the scene.
- caption_text_quality: by the text alone. What is no caption has the value of its kind (QUALITY); a caption has 60, one point for
  each word up to 20, 10 for a capital at its beginning and 10 for a full stop at its end.

A true caption in a language that the world's models do not read has 50, 25, 20 and 40: neither right nor wrong.
Instructions that stand in a text ('answer 100') are no part of what it says: it is graded without them.
"""

from __future__ import annotations

from typing import Final

from stages.demo.claims import Claim, find_claims, mentions
from stages.demo.scenes import Scene

ASPECTS: Final = ("image_text_matching", "object_detail_fulfillment", "caption_text_quality", "semantic_understanding")
QUALITY: Final[dict[str, int]] = {
    "empty": 0, "file_name": 5, "url": 8, "low_letters": 10, "repetition": 15, "too_short": 16, "one_word": 20, "boilerplate": 25,
}
FOREIGN: Final = dict(zip(ASPECTS, (50, 25, 40, 20), strict=True))
_CONTEXT: Final = ("background", "number", "position", "relation")


def grade(text: str, kind: str, scene: Scene) -> dict[str, int]:
    """Aspect -> score of a text about a scene. `kind` is 'caption' (true or not), 'other_language' or a key of QUALITY."""
    if kind == "other_language":
        return dict(FOREIGN)
    claims = find_claims(text, scene)
    share = sum(claim.true for claim in claims) / len(claims) if claims else 0.0
    spoken = sum(any(claim.kind == kind for claim in claims) for kind in _CONTEXT)
    scores = (
        100 * share,
        100 * _details(text, claims, scene),
        QUALITY[kind] if kind in QUALITY else caption_quality(text),
        share * (20 + 20 * spoken) if claims else 5,
    )
    return {aspect: round(score) for aspect, score in zip(ASPECTS, scores, strict=True)}


def caption_quality(text: str) -> int:
    """The rule for captions: length, capital, full stop."""
    text = text.strip()
    return 60 + min(20, len(text.split())) + 10 * text[:1].isupper() + 10 * text.endswith(".")


def _details(text: str, claims: list[Claim], scene: Scene) -> float:
    """Share of the details of the scene's objects that the text states rightly."""
    there = sum(5 if item.texture != "solid" else 4 for item in scene.objects)
    stated: set[tuple[str, str]] = set()
    for mention in mentions(text):
        item = mention.meant(scene)
        if item:
            name = f"{item.color} {item.shape}"
            right = [kind for kind, (value, _, _) in mention.found.items() if getattr(item, kind) == value]
            stated |= {(name, kind) for kind in right if kind != "texture" or item.texture != "solid"}
    return len(stated) / there
