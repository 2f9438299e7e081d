"""Prompts: every file is well written, and filling one in never reads a value as a template."""

from __future__ import annotations

import hashlib

import pytest

from stages import prompts

ASPECTS = ("image_text_matching", "object_detail_fulfillment", "caption_text_quality", "semantic_understanding")
# name -> (version, digest of system and user text): whoever changes a wording must raise its version and say so here
KNOWN: dict[str, tuple[int, str]] = {
    "caption_brief": (1, "ea17552b584f"),
    "caption_category": (1, "94de042c9ca4"),
    "caption_dense": (1, "1fbf13ce65ff"),
    "caption_descriptive": (1, "a1f203ea987c"),
    "caption_fused": (1, "99904093d9c4"),
    "caption_long": (1, "6dd2089a12d0"),
    "caption_merged": (1, "2f7a89aa0c3a"),
    "caption_plain": (1, "9e157dca2dd0"),
    "caption_region": (1, "e784d57d55c8"),
    "caption_short": (1, "c146166b11fe"),
    "question": (1, "5d9f47b9a36a"),
    "score_caption_text_quality": (1, "80c18ec4cea6"),
    "score_image_text_matching": (1, "b20689b1378e"),
    "score_object_detail_fulfillment": (1, "e34efaa64bf1"),
    "score_semantic_understanding": (1, "c150c609017a"),
    "tags": (1, "fc756b74f13f"),
}


def digest(prompt: prompts.Prompt) -> str:
    return hashlib.sha256(f"{prompt.system}\0{prompt.user}".encode()).hexdigest()[:12]


def test_every_prompt_has_the_version_and_wording_that_are_on_record() -> None:
    assert {name: (prompts.load(name).version, digest(prompts.load(name))) for name in prompts.names()} == KNOWN


@pytest.mark.parametrize("name", prompts.names())
def test_text_from_outside_stands_between_the_marks_and_nowhere_else(name: str) -> None:
    prompt = prompts.load(name)
    filled = prompt.render(**{field: f"VALUE-{field}" for field in prompt.fields})
    for field in prompt.fields:
        assert filled.count(f"{prompts.OPENING} VALUE-{field} {prompts.CLOSING}") == 1
        assert filled.count(f"VALUE-{field}") == 1
    assert filled.count(prompts.CLOSING) == len(prompt.fields)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_the_scores_of_one_text_share_everything_up_to_the_criterion(aspect: str) -> None:
    prompt = prompts.load(f"score_{aspect}")
    shared, _, criterion = prompt.user.partition(prompts.CLOSING)
    assert shared == "<text> {alt_text} " and criterion.strip().startswith(f"Score {aspect}:")


def test_a_value_with_braces_is_put_in_as_it_is() -> None:
    assert "{system} {0}" in prompts.load("question").render(question="{system} {0}")


def test_missing_and_unknown_fields_are_refused_with_the_names_needed() -> None:
    with pytest.raises(prompts.PromptError, match="'caption_fused' needs alt_text; given: none"):
        prompts.load("caption_fused").render()
    with pytest.raises(prompts.PromptError, match="needs no field; given: alt_text"):
        prompts.load("tags").render(alt_text="x")


def test_an_unknown_prompt_is_refused_with_the_list() -> None:
    with pytest.raises(prompts.PromptError, match="no prompt 'caption_shrt'; there are: caption_brief"):
        prompts.load("caption_shrt")
