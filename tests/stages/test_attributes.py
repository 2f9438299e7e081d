"""attributes: gates at their edges, templates that say all that was chosen and nothing else, consent, and real scores of the bundled CLIP."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import RecipeError
from pipeline.models import LocalModel
from pipeline.stage import Context
from stages import attribute_schemes
from stages.attribute_check import AttributeCheck
from stages.attribute_schemes import Chosen, Scheme
from stages.attributes import Attributes, choose

PERSON, FACE = (attribute_schemes.load(name, "test") for name in ("person", "face"))
REQUIRED = {"age", "gender", "hair", "upper", "lower", "action"}


def logits_for(scheme: Scheme, shares: Mapping[str, float], picks: Mapping[str, int] | None = None) -> np.ndarray:
    """Logits of all candidates so that in each category the picked phrase (else the first) has its share and the others divide the rest.

    A category that is not named: its last candidate, which is 'not there' where it is optional, is sure.
    """
    found = []
    for category in scheme.categories:
        count = len(category.candidates)
        place = (picks or {}).get(category.name, 0) if category.name in shares else count - 1
        share = shares.get(category.name, 0.999)
        own = np.full(count, (1 - share) / (count - 1))
        own[place] = share
        found.append(np.log(own))
    return np.concatenate(found)


class Picture:
    """A stored image whose grey value is the number of its row."""

    def __init__(self, number: int):
        out = io.BytesIO()
        Image.new("RGB", (8, 8), (number,) * 3).save(out, "PNG")
        self.data = out.getvalue()

    def read(self) -> bytes:
        return self.data


class Planted:
    """An embedder whose k-th text is the k-th axis, and whose image of grey value n lies where the n-th planned logits say."""

    def __init__(self, *planned: np.ndarray):
        self.planned = planned
        self.digest = f"planted {id(self)}"

    def describe(self) -> dict[str, Any]:
        return {"image_size": 8, "resize_mode": "squash", "interpolation": "bilinear", "embed_dim": len(self.planned[0]), "logit_scale": 1.0}

    def embed(self, request: Mapping[str, Any]) -> dict[str, Any]:
        images = [self.planned[int(image[0, 0, 0])] for image in request["images"]]
        return {**request, "image": np.array(images).reshape(-1, len(self.planned[0])), "text": np.eye(len(self.planned[0]))[: len(request["texts"])]}


def through(planned: Sequence[np.ndarray], **params: Any) -> list[Any]:
    stage, handle = Attributes(Attributes.Params(**params)), LocalModel(Planted(*planned))
    ctx = Context("attributes", 0, model=handle)
    rows = [{"sample_id": at.to_bytes(16, "big"), "image": Picture(at)} for at in range(len(planned))]
    return stage.finish(rows, handle.submit(stage.model_method, stage.prepare(rows, ctx)).result(), ctx)


def phrases(result: Any) -> list[str]:
    return [one["phrase"] for one in result["attributes"]]


def test_unipt_acceptance_planted_phrases_come_back_exactly_and_fill_all_six_slots() -> None:
    """UniPT (9): required categories by arg-max whatever their share, optional ones above 0.9; every sentence names exactly what was chosen."""
    assert {category.name for category in PERSON.categories if category.required} == REQUIRED and len(PERSON.categories) == 14
    draw = np.random.default_rng(0)
    planned, expected = [], []
    for _ in range(40):
        present = [c for c in PERSON.categories if c.required or draw.random() < 0.3]
        picks = {c.name: int(draw.integers(len(c.phrases))) for c in present}
        planned.append(logits_for(PERSON, {c.name: 0.51 if c.required else 0.95 for c in present}, picks))
        expected.append([c.phrases[picks[c.name]] for c in present])
    results = through(planned)
    for result, meant in zip(results, expected, strict=True):
        assert phrases(result) == meant
        assert PERSON.differences(result["text"], meant) == ([], [])
    assert len({result["text"].split()[0] for result in results}) > 3, "several templates are drawn"


@pytest.mark.parametrize(("share", "taken"), [(0.90, False), (0.91, True)])
def test_unipt_acceptance_an_optional_phrase_at_090_is_out_and_at_091_in(share: float, taken: bool) -> None:
    shares = {**dict.fromkeys(REQUIRED, 0.5), "bag": share}
    chosen = choose(PERSON, logits_for(PERSON, shares, {"bag": 2}), PERSON.threshold)
    assert ("a shoulder bag" in [one.phrase for one in chosen]) is taken
    assert {one.category for one in chosen} - {"bag"} == REQUIRED


def test_a_required_category_takes_its_likeliest_phrase_however_unsure_it_is() -> None:
    chosen = choose(PERSON, np.zeros(sum(len(c.candidates) for c in PERSON.categories)), 0.9)
    assert {one.category for one in chosen} == REQUIRED and chosen[0].score == pytest.approx(1 / 3, abs=1e-4)


@pytest.mark.parametrize(("share", "kept"), [(0.85, False), (0.851, True)])
def test_facecaption_acceptance_a_label_at_085_is_out_and_at_0851_in(share: float, kept: bool) -> None:
    chosen = choose(FACE, logits_for(FACE, {"eyeglasses": share}), FACE.threshold)
    assert [one.phrase for one in chosen] == (["eyeglasses"] if kept else [])


def test_facecaption_acceptance_the_funnel_equals_a_hand_table() -> None:
    """FaceCaption (2): rows with 0, 5, 6 and 12 sure labels, and six of which one has 0.85: captions for the third and the fourth only."""
    assert len(FACE.categories) == 40 and len({category.group for category in FACE.categories}) == 5
    labels = [category.name for category in FACE.categories]
    table = [({}, 0, False), (dict.fromkeys(labels[:5], 0.851), 5, False), (dict.fromkeys(labels[10:16], 0.851), 6, True),
             (dict.fromkeys(labels[20:32], 0.99), 12, True), ({**dict.fromkeys(labels[:5], 0.9), labels[9]: 0.85}, 5, False)]  # fmt: skip
    results = through([logits_for(FACE, shares) for shares, _, _ in table], scheme="face", consent=True)
    for result, (_, count, captioned) in zip(results, table, strict=True):
        assert len(result["attributes"]) == count and (result["text"] is not None) is captioned
        if captioned:
            assert FACE.differences(result["text"], phrases(result)) == ([], []), "every attribute is mentioned and no other"


def test_facecaption_acceptance_a_rewritten_caption_that_drops_or_adds_an_attribute_is_rejected() -> None:
    chosen = [{"category": "", "phrase": phrase, "score": 0.9} for phrase in ("young", "smiling", "a hat", "black hair")]
    template = "A face that is young and smiling, with black hair, wearing a hat."
    texts = ["A young, smiling face under a hat, framed by black hair.", "A young face under a hat with black hair.",
             "A young, smiling face with black hair, a hat and a necklace.", None]  # fmt: skip
    stage = AttributeCheck(AttributeCheck.Params(of="rewritten", scheme="face"))
    rows = [dict(zip(stage.reads, (text, chosen, template), strict=True)) for text in texts]
    results = stage.compute(rows, Context("attribute_check", 0))
    assert [result["consistent"] for result in results] == [True, False, False, None]  # type: ignore[index]
    assert [result["dropped"] for result in results] == [[], ["smiling"], [], None]  # type: ignore[index]
    assert [result["added"] for result in results] == [[], [], ["a necklace"], None]  # type: ignore[index]
    assert [result["text"] for result in results] == [texts[0], template, template, template]  # type: ignore[index]


def test_faces_are_described_only_with_consent() -> None:
    with pytest.raises(RecipeError, match="biometric data: it runs only with `consent: true`"):
        Attributes(Attributes.Params(scheme="face")).check({})
    Attributes(Attributes.Params(scheme="face", consent=True)).check({})
    Attributes(Attributes.Params()).check({})


@pytest.mark.parametrize("name", attribute_schemes.names())
def test_every_template_says_all_that_was_chosen_and_nothing_else(name: str) -> None:
    scheme, draw = attribute_schemes.load(name, "test"), np.random.default_rng(1)
    for at in range(200):
        chosen = [
            Chosen(category.name, category.phrases[int(draw.integers(len(category.phrases)))], 0.95)
            for category in scheme.categories
            if category.required or draw.random() < (at % 10) / 10
        ]
        text = scheme.sentence(chosen, at)
        assert scheme.differences(text, [one.phrase for one in chosen]) == ([], []), text
        assert not set("[]{}|") & set(text) and "  " not in text and text[0].isupper()


def test_a_scheme_of_ones_own_is_checked(tmp_path: Path) -> None:
    def load(text: str) -> Scheme:
        path = tmp_path / f"{abs(hash(text))}.yaml"
        path.write_text(text)
        return attribute_schemes.load(str(path), "stages.attributes.scheme")

    categories = "[{name: c, required: true, phrases: [red, blue]}, {name: t, phrases: [dotted], absent: plain}]"
    good = "{prompt: 'a {}', threshold: 0.5, categories: " + categories + ", templates: ['%s']}"
    assert load(good % "It is {c}[ and {t}].").sentence([Chosen("c", "red", 1.0)], 0) == "It is red."
    with pytest.raises(RecipeError, match="must name each of c, t once; look at t"):
        load(good % "It is {c}.")
    with pytest.raises(RecipeError, match="t is optional, put it into"):
        load(good % "It is {c} and {t}.")
    with pytest.raises(RecipeError, match="phrase 'red' stands twice"):
        load((good % "It is {c}[ and {t}].").replace("dotted", "red"))
    with pytest.raises(RecipeError, match="give `absent`"):
        load((good % "It is {c}[ and {t}].").replace(", absent: plain", ""))
    with pytest.raises(RecipeError, match="cannot be read"):
        load("{prompt: x}")
    with pytest.raises(RecipeError, match=r"no scheme 'persons' \(did you mean 'person'\?\)"):
        attribute_schemes.load("persons", "stages.attributes.scheme")


def test_the_bundled_clip_names_the_colour_of_most_single_objects(tmp_path: Path) -> None:
    """40 rendered scenes of one object: the colour by arg-max over eleven, chance 0.09."""
    pytest.importorskip("open_clip")
    from stages.demo.scenes import COLORS, draw_scene, render
    from stages.demo.streams import seed_for
    from stages.models import open_clip

    path = tmp_path / "colours.yaml"
    colours = f"{{name: colour, required: true, phrases: [{', '.join(COLORS)}]}}"
    path.write_text(f"{{prompt: 'a {{}} object', threshold: 0, categories: [{colours}], templates: ['{{colour}}']}}")
    scenes = [scene for at in range(400) if len((scene := draw_scene(seed_for("heldout", 7_000_000 + at))).objects) == 1][:40]
    pictures = []
    for at, scene in enumerate(scenes):
        picture = Picture(at)
        out = io.BytesIO()
        Image.fromarray(render(scene, 64)).save(out, "PNG")
        picture.data = out.getvalue()
        pictures.append({"sample_id": at.to_bytes(16, "big"), "image": picture})
    stage = Attributes(Attributes.Params(scheme=str(path)))
    handle = LocalModel(open_clip.load({"kind": "open_clip", "weights": "bundled:rendered_clip", "device": "cpu", "batch_size": 8}))
    ctx = Context("attributes", 0, model=handle)
    results = stage.finish(pictures, handle.submit("embed", stage.prepare(pictures, ctx)).result(), ctx)
    right = sum(result["text"].lower() == scene.objects[0].color for scene, result in zip(scenes, results, strict=True))  # type: ignore[index]
    assert len(scenes) == 40 and right >= 24, right
