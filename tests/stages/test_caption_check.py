"""caption_check: each check is tripped exactly, similarities equal a plain computation, trust follows its written rule, decide only on request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import Fatal
from pipeline.models import LocalModel
from pipeline.stage import Context, params_affecting
from schemas.outcome import Drop, Reason
from stages.caption import clip_tokens
from stages.caption_check import FAULTS, FLAGS, CaptionCheck

GOOD = "a brown dog runs along the sandy beach near the water"  # 11 tokens
DESCRIPTIVE = (
    "A white cat with green eyes is sleeping on a blue velvet armchair near the window. Two empty cups stand on a small round table beside it. "
    "A striped rug covers the wooden floor."
)
CTX = Context("caption_check", 0)


def row(text: str | None, **more: Any) -> dict[str, Any]:
    told = {"n_tokens": None, "finish_reason": "stop", "prompt": "caption_short@1"}
    return {"c.text": text, **{f"c.{name}": more.pop(name, value) for name, value in told.items()}, **more}


def check(text: str | None, given: dict[str, Any] | None = None, **params: Any) -> tuple[dict[str, Any], Drop | None]:
    """Values as stored and read back, and the verdict."""
    stage = CaptionCheck(CaptionCheck.Params(of="c", **params))
    (values,) = stage.compute([row(text, **(given or {}))], CTX)
    table = pa.table({name: pa.array([values[name]], kind) for name, kind in stage.writes.items()})
    (stored,) = table.to_pylist()
    return stored, stage.decide(stored, {})


def flags(text: str | None, given: dict[str, Any] | None = None, **params: Any) -> list[str]:
    return check(text, given, **params)[0]["flags"]


def test_a_good_caption_has_no_flag_and_is_measured() -> None:
    values, verdict = check(GOOD)
    assert (values["flags"], verdict) == ([], None)
    assert (values["n_tokens"], values["n_sentences"], values["n_assertions"], values["n_nouns"]) == (clip_tokens(GOOD), 1, 4, 3)
    assert (values["lang"], values["repeated"], values["phrase"], values["trust"]) == ("en", 0.0, None, 0.5)


@pytest.mark.parametrize(
    ("flag", "text", "given"),
    [
        ("no_caption", None, {}),
        ("no_caption", "  ", {}),
        ("too_short", "a brown dog on a beach", {}),
        ("too_long", GOOD + " with a red ball and a stick", {}),
        ("cut_off", "a brown dog runs along the sandy beach near the", {}),
        ("cut_off", GOOD + ",", {}),
        ("cut_off", GOOD, {"finish_reason": "length"}),
        ("refusal", "I'm sorry, this image of a dog is too small", {}),
        ("refusal", "As an AI, I see a dog on a beach", {}),
        ("assistant", "Sure, a brown dog runs along the sandy beach", {}),
        ("assistant", "A brown dog on the beach. Let me know if that fits", {}),
        ("copied_prompt", "name the main subject of the image: a brown dog", {}),
        ("repetition", "a dog, a dog, a dog, a dog, a dog", {}),
        ("repetition", "the dog dog dog dog runs along the beach today", {}),
        ("language", "ein brauner Hund rennt den Strand entlang", {}),
    ],
)
def test_each_fault_trips_its_own_flag_and_no_other(flag: str, text: str | None, given: dict[str, Any]) -> None:
    assert flags(text, given) == [flag]


def test_every_flag_has_a_test_and_faults_take_all_trust() -> None:
    assert set(FLAGS) == {"no_caption", "too_short", "too_long", "over_cap", "cut_off", *FAULTS}
    assert check("I'm sorry, this image of a dog is too small")[0]["trust"] == 0.0
    assert check(GOOD + ",")[0]["trust"] == 0.25


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        ("short", {9: ["too_short"], 10: [], 15: [], 16: ["too_long"]}),
        ("descriptive", {39: ["too_short"], 40: [], 60: [], 61: ["too_long"], 78: ["too_long"], 79: ["too_long", "over_cap"]}),
        ("dense", {100: ["too_short"], 101: [], 400: []}),
        ("fused", {39: ["too_short"], 40: [], 78: [], 79: ["too_long"]}),
    ],
)
def test_windows_of_the_formats_have_their_edges_inside(kind: str, counts: dict[int, list[str]]) -> None:
    assert {n: flags(DESCRIPTIVE, {"n_tokens": n}, format=kind) for n in counts} == counts


def test_another_window_and_sentences_that_must_end() -> None:
    assert flags(GOOD, {"n_tokens": 100}, window=(90, None)) == []
    assert flags(DESCRIPTIVE[:-1], {"n_tokens": 45}, format="descriptive") == ["cut_off"]
    assert flags("a very, very, very old dog runs along the beach") == []


def test_the_prompts_own_words_are_known_by_name_or_given() -> None:
    copied = "Describe the subject and the key visual elements of a dog"
    assert flags(copied, {"prompt": "caption_descriptive@1"}) == ["copied_prompt"]
    assert flags(copied) == [] == flags(copied, {"prompt": "custom-1234@1"})
    assert flags(copied, {"prompt": "custom-1234@1"}, prompt_text="Describe the subject and the key visual elements: {alt_text}") == ["copied_prompt"]


def test_nothing_is_dropped_unless_asked_for_and_asking_computes_nothing_again() -> None:
    bad = "I'm sorry, this image of a dog is too small"
    assert check(bad)[1] is None and check(None)[1] is None
    assert check(bad, require=("refusal",))[1] == Drop(Reason.BAD_CAPTION, "refusal: \"i'm sorry\"")
    assert check(bad, require=("too_short",), min_trust=0.4)[1].detail == "0 < 0.4"
    assert check(GOOD, min_trust=0.5)[1] is None and check(GOOD, min_trust=0.51)[1].reason.value == "low_trust"
    assert check(None, min_trust=0.1)[1].detail == "no caption"
    changed = {name for name in ("min_trust", "require")}
    assert set(params_affecting(CaptionCheck.Params(of="c"), "decide")) == changed


@pytest.mark.parametrize(("confirmed", "weakest", "trust"), [(0.75, None, 0.75), (0.75, 0.2, 0.2), (None, None, 0.5), (0.0, None, 0.0)])
def test_claims_are_evidence(confirmed: float | None, weakest: float | None, trust: float) -> None:
    values, _ = check(GOOD, {"x.confirmed": confirmed, "x.weakest": weakest}, claims="x")
    assert (values["confirmed"], values["trust"]) == (confirmed, pytest.approx(trust))


@pytest.fixture(scope="module")
def clip() -> Any:
    """A real CLIP of random weights."""
    pytest.importorskip("open_clip")
    from stages.models import open_clip as kind

    return kind.load({"kind": "open_clip", "name": "ViT-S-32-alt", "weights": "random", "batch_size": 4, "device": "cpu", "threads": 1})


def compare(clip: Any, rows: list[dict[str, Any]], **params: Any) -> list[Any]:
    stage, handle = CaptionCheck(CaptionCheck.Params(of="c", model="clip", **params)), LocalModel(clip)
    ctx = Context("caption_check", 0, model=handle)
    answer = handle.submit(stage.model_method, stage.prepare(rows, ctx)).result()
    return stage.finish(rows, answer, ctx)


def test_similarities_are_cosines_with_what_is_stored(clip: Any) -> None:
    image, alt = clip.embed_texts(["anything", "a dog on a beach"]).astype(np.float16)
    stored = {"image_emb": image.tobytes(), "text_emb": alt.tobytes(), "clip_score": 0.25}
    first, none, other = compare(clip, [row(GOOD, **stored), row(None, **stored), row("a small red car", **{**stored, "text_emb": None})])
    caption = clip.embed_texts([GOOD])[0].astype(np.float64)
    assert (first["s_xt"], first["s_xc"]) == (0.25, pytest.approx(float(image.astype(np.float64) @ caption), abs=2e-3))
    assert first["s_tc"] == pytest.approx(float(alt.astype(np.float64) @ caption), abs=2e-3)
    assert none["s_xc"] is None and none["flags"] == ["no_caption"]
    assert other["s_tc"] is None and other["s_xc"] is not None


def test_similarity_is_evidence_within_its_range(clip: Any) -> None:
    image = clip.embed_texts([GOOD])[0].astype(np.float16)
    stored = {"image_emb": image.tobytes(), "text_emb": image.tobytes(), "clip_score": 0.25, "x.confirmed": 0.5, "x.weakest": None}
    assert compare(clip, [row(GOOD, **stored)], similarity_range=(0.5, 1.5))[0]["trust"] == pytest.approx(0.5, abs=1e-3)
    assert compare(clip, [row(GOOD, **stored)], similarity_range=(0.0, 1.0), claims="x")[0]["trust"] == pytest.approx(0.75, abs=1e-3)


def test_embeddings_of_another_model_are_refused(clip: Any) -> None:
    stored = {"image_emb": np.ones(7, np.float16).tobytes(), "text_emb": None, "clip_score": None}
    with pytest.raises(Fatal, match="the stored ones have 7; name the model of the clip_score stage"):
        compare(clip, [row(GOOD, **stored)])


def test_alips_weights_from_the_columns_are_lower_where_the_alt_text_was_shuffled() -> None:
    """ALIP's acceptance sentence for the columns alone: 30 % of the alt-texts shuffled, weights with H the mean over the data."""
    pytest.importorskip("open_clip")
    from stages.demo.captions import caption_for, heldout_pairs
    from stages.demo.scenes import render
    from stages.models import open_clip as kind

    model = kind.load({"kind": "open_clip", "weights": "bundled:rendered_clip", "device": "cpu", "threads": 1})
    scenes = [scene for scene, _ in heldout_pairs(100)]
    alt_texts = [caption_for(scene) for scene in scenes]
    alt_texts[:30] = alt_texts[1:30] + alt_texts[:1]
    images = model.embed_images(np.stack([render(scene, model.image_size) for scene in scenes])).astype(np.float16)
    texts = model.embed_texts(alt_texts).astype(np.float16)
    scores = (images.astype(np.float64) * texts.astype(np.float64)).sum(axis=1)
    rows = [
        row(caption_for(scene, variant=1), image_emb=image.tobytes(), text_emb=text.tobytes(), clip_score=float(score))
        for scene, image, text, score in zip(scenes, images, texts, scores, strict=True)
    ]
    found = compare(model, rows)
    s_tc, s_xt = (np.array([values[name] for values in found]) for name in ("s_tc", "s_xt"))
    sample = np.exp(2 * (s_tc - s_tc.mean()))
    weights = np.minimum(sample, 1) * np.where(sample < 1, np.exp(2 * (s_xt - s_xt.mean())), 1)
    assert weights[:30].mean() < 0.8 * weights[30:].mean()


@pytest.mark.parametrize(
    ("option", "told"), [({"window": (60, 40)}, "the fewest tokens come first"), ({"similarity_range": (0.3, 0.3)}, "the lower similarity")]
)
def test_ranges_that_hold_nothing_are_refused(option: dict[str, Any], told: str) -> None:
    """Equal ends of similarity_range divided by zero in every row."""
    with pytest.raises(ValueError, match=told):
        CaptionCheck.Params(of="caption_short", **option)
