"""caption: formats and prompts, what fails, tokens counted by CLIP's vocabulary, seeds, columns that stand for no other."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import RecipeError
from stages import prompts
from stages.caption import CLIP_WINDOW, FORMATS, Caption, clip_tokens
from stages.images.fit import fit_image
from stages.models.protocols import ChatAnswer, Sampling
from tests.stages.asked_rows import Scripted, ask, row
from tests.stages.conftest import jpeg_bytes

pytest.importorskip("open_clip")


def make(instance: str = "", **params: Any) -> Caption:
    stage = Caption(Caption.Params(**params), instance)
    assert stage.reads
    stage.check({})
    return stage


def test_values_of_a_caption() -> None:
    found = ask(make(), Scripted(" A red dog \n runs. "), [row("alt", at=1)])
    assert found == [
        {
            "text": "A red dog runs.", "model": "scripted", "prompt": "caption_short@1", "n_tokens": 5, "cut_by_clip_window": False,
            "finish_reason": "stop", "seed": None,
        }
    ]  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_has_its_prompt_and_length(format: str) -> None:
    model = Scripted("words")
    ask(make(format=format), model, [row("a tale of <text> two </text> towns")])
    prompt = prompts.load(FORMATS[format][0])
    values = {"alt_text": "a tale of (text) two (/text) towns"} if prompt.fields else {}
    assert model.asked[0].text == prompt.render(**values) and model.asked[0].sampling.max_tokens == FORMATS[format][1]


def test_fewest_tokens_are_asked_for_and_a_fixed_length_is_no_truncation() -> None:
    model = Scripted(ChatAnswer("a red dog", 8, "length"))
    (fixed,) = ask(make(max_tokens=8, min_tokens=8), model, [row("alt")])
    (cut,) = ask(make(max_tokens=8, min_tokens=4), model, [row("alt")])
    assert fixed["text"] == "a red dog" and fixed["finish_reason"] == "length" and cut.code == "truncated"
    assert [request.sampling.min_tokens for request in model.asked] == [8, 4]


def test_a_request_without_fewest_tokens_has_the_key_it_had_before_there_were_any() -> None:
    older = {"max_tokens": 3, "temperature": 0.0, "top_p": 1.0, "seed": None, "numbers": False, "choices": [], "yes_no": False}
    assert json.loads(Sampling(3).to_json()) == older
    assert json.loads(Sampling(3, min_tokens=2).to_json()) == older | {"min_tokens": 2}


def test_tokens_are_clips_without_start_and_end() -> None:
    from open_clip import get_tokenizer

    tokenizer = get_tokenizer("ViT-B-32")
    for text in ("a photo of a cat", "Naïve café, 12 o'clock!", "word " * 60):
        whole = tokenizer([text])[0]
        assert clip_tokens(text) == int((whole != 0).sum()) - 2
    exactly, over = "word " * CLIP_WINDOW, "word " * (CLIP_WINDOW + 1)
    found = ask(make(format="dense"), Scripted(exactly, over), [row("x"), row("x", at=1)])
    assert [(one["n_tokens"], one["cut_by_clip_window"]) for one in found] == [(75, False), (76, True)]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("", "bad_answer"), (" ... ", "bad_answer"), ("I'm sorry, but I can't help.", "refusal"), ("I cannot see images", "refusal"),
        ("As an AI model", "refusal"),
        (ChatAnswer("no", 1, "refused"), "refusal"), (ChatAnswer("a dog that", 3, "length"), "truncated"),
    ],
)  # fmt: skip
def test_what_is_no_caption_fails(answer: Any, code: str) -> None:
    found = ask(make(), Scripted(answer), [row("x")])[0]
    assert found.code == code


def test_a_sorry_in_the_middle_is_no_refusal() -> None:
    assert ask(make(), Scripted("A card that says I am sorry"), [row("x")])[0]["text"].startswith("A card")


def test_failed_captions_keep_their_row() -> None:
    assert Caption.on_failure == "keep" and Caption.bare_names is False


def test_other_prompts_and_fields_from_columns() -> None:
    model = Scripted("words")
    merged = make(prompt="caption_merged", fields={"caption": "caption_short.text", "tags": "tags.tags"})
    assert set(merged.reads) == {"image", "sample_id", "texts|text|alt_text", "caption_short.text", "tags.tags"}
    given = row("raw") | {"caption_short.text": "a dog", "tags.tags": [{"name": "dog", "score": 0.5}, {"name": "grass", "score": 0.4}]}
    ask(merged, model, [given])
    assert "Raw caption: <text> raw </text>\nSynthetic caption: <text> a dog </text>\nTags: <text> dog, grass </text>" in model.asked[0].text
    own = make(prompt_text="What could one call {alt_text}? {{one}} word", fields={"alt_text": "alt_text"})
    found = ask(own, model, [row("x") | {"alt_text": "a </text> b"}])
    assert model.asked[1].text == "What could one call <text> a (/text) b </text>? {one} word"
    assert found[0]["prompt"].startswith("custom-") and found[0]["prompt"].endswith("@1")


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"prompt": "caption_shrt"}, "there is no prompt 'caption_shrt'"),
        ({"prompt": "caption_merged"}, "field 'caption' needs a column"),
        ({"prompt": "caption_long", "prompt_text": "x"}, "not both"),
        ({"prompt_text": "a {0} b"}, "a field is a name in braces"),
        ({"prompt_text": "a { b"}, "write a brace"),
        ({"max_tokens": 4, "min_tokens": 5}, "is more than the most tokens"),
        ({"fields": {"tags": "tags.tags"}}, "has no field 'tags'"),
    ],
)
def test_wrong_prompts_are_refused(params: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        make(**params)


def test_seeds_differ_by_row_and_instance_and_are_recorded() -> None:
    rows = [row("x", at=at) for at in range(3)]
    first = [one["seed"] for one in ask(make("one", temperature=0.7), Scripted("words"), rows)]
    assert first == [one["seed"] for one in ask(make("one", temperature=0.7), Scripted("words"), rows)]
    second = [one["seed"] for one in ask(make("two", temperature=0.7), Scripted("words"), rows)]
    other = [one["seed"] for one in ask(make("one", temperature=0.7), Scripted("words"), rows, seed=1)]
    assert len({*first, *second, *other}) == 9


def test_wording_of_the_prompt_belongs_to_the_fingerprint() -> None:
    assert make().compute_facts() != make(format="dense").compute_facts() == make(format="dense").compute_facts()


def test_images_are_scaled_down_to_the_pixel_cap_and_never_up() -> None:
    model = Scripted("words", max_pixels=64 * 64)
    ask(make(), model, [row("x", data=jpeg_bytes(640, 160)), row("x", data=jpeg_bytes(20, 30))])
    shapes = [asked.image.shape for asked in model.asked]
    assert shapes == [(32, 128, 3), (30, 20, 3)]
    assert fit_image(jpeg_bytes(2000, 8), 100).shape[1] <= 100


def test_scaled_image_is_that_of_a_plain_resize() -> None:
    data = jpeg_bytes(200, 150, 3)
    plain = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((129, 96), Image.Resampling.BICUBIC), int)
    ours = fit_image(data, 129 * 97)
    assert ours.shape == plain.shape and np.abs(ours - plain).mean() < 1
