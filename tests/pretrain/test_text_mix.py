"""The mix of texts at load time: realised shares, COSMO's modes, TL;DR's complement."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from stages.pretrain.draws import generator
from stages.pretrain.errors import TrainError
from stages.pretrain.objectives import make_objective
from stages.pretrain.objectives.base import Sample
from stages.pretrain.objectives.clip import choose_text
from stages.pretrain.text_mix import REVISIT_CLIP, REVISIT_MLLM, TextMix, check_mix, mixed_text

TEXTS = ["IMG web text", "a dog", "a brown dog on grass"]
KINDS = ["alt_text", "caption_short", "caption_dense"]


def outcomes(mix: TextMix, draws: int = 400) -> set[str]:
    rng = np.random.default_rng(0)
    return {mixed_text(mix, "a dog", TEXTS, KINDS, rng) for _ in range(draws)}


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        ("caption", {"a dog"}),
        ("random", set(TEXTS)),
        ("clean_only", {"a dog", "a brown dog on grass"}),
        ("noisy_only", {"IMG web text"}),
        ("mixed", set(TEXTS)),
        ("clean_first", {"a dog IMG web text", "a brown dog on grass IMG web text"}),
        ("clean_last", {"IMG web text a dog", "IMG web text a brown dog on grass"}),
        ("clean_random", {"a dog IMG web text", "a brown dog on grass IMG web text", "IMG web text a dog", "IMG web text a brown dog on grass"}),
        ("complement", {"IMG web text; a dog", "IMG web text; a brown dog on grass"}),
        ({"alt_text": 1.0}, {"IMG web text"}),
        ({"caption_dense": 0.5, "caption_fused": 0.5}, {"a brown dog on grass"}),
        ({"caption_fused": 1.0}, {"a dog"}),
    ],
)
def test_each_mode_gives_its_texts_and_no_other(mix: TextMix, expected: set[str]) -> None:
    assert outcomes(mix) == expected


def test_revisits_shares_have_names() -> None:
    for name, shares in (("revisit_clip", REVISIT_CLIP), ("revisit_mllm", REVISIT_MLLM)):
        one, other = np.random.default_rng(3), np.random.default_rng(3)
        drawn = [mixed_text(name, "a dog", TEXTS, KINDS, one) for _ in range(300)]
        assert drawn == [mixed_text(shares, "a dog", TEXTS, KINDS, other) for _ in range(300)] and len(set(drawn)) == 2
        assert make_objective("clip", {"text": name}).needs.columns == ("caption", "texts", "kinds")


def test_a_joined_caption_is_no_generated_text_and_a_blank_one_is_not_trained_on() -> None:
    rng = np.random.default_rng(0)
    joined = (["IMG; a dog", "IMG", "a dog"], ["caption", "alt_text", "caption_short"])
    assert {mixed_text("clean_only", "IMG; a dog", *joined, rng) for _ in range(100)} == {"a dog"}
    assert {mixed_text("complement", "IMG; a dog", *joined, rng) for _ in range(100)} == {"IMG; a dog"}
    assert mixed_text("clean_only", "retrieved", ["retrieved", "IMG"], ["caption", "alt_text"], rng) == "retrieved", "nothing else was written"
    for mix in ("random", "mixed", "noisy_only", {"alt_text": 1.0}):
        assert mixed_text(mix, "", ["a dog"], ["caption_short"], rng) == "a dog"


def test_a_mix_of_kinds_that_the_data_has_not_is_refused() -> None:
    kinds = {"alt_text", "caption_short"}
    for mix in ("caption", "random", "mixed", "revisit_clip", {"caption_short": 1.0, "caption_dense": 0.0}):
        check_mix(mix, kinds)
    with pytest.raises(
        TrainError, match=r"no text of the dataset is of kind 'capton_short' \(did you mean 'caption_short'\?\); its texts .* alt_text, caption_short"
    ):
        check_mix({"alt_text": 0.5, "capton_short": 0.5}, kinds)
    with pytest.raises(TrainError, match="no text of the dataset is of kind 'caption_dense'"):
        check_mix("revisit_mllm", kinds)
    with pytest.raises(TrainError, match="clean_last asks for generated texts, and the dataset has none"):
        check_mix("clean_last", {"alt_text"})


@pytest.mark.parametrize("mix", [REVISIT_CLIP, {"alt_text": 0.2, "caption_short": 0.3, "caption_dense": 0.5}])
def test_over_100_000_draws_the_realised_mix_is_within_3_sigma_and_repeatable(mix: dict[str, float]) -> None:
    def draw(seed: int) -> list[str]:
        rng = np.random.default_rng(seed)
        return [KINDS[TEXTS.index(mixed_text(mix, "a dog", TEXTS, KINDS, rng))] for _ in range(100_000)]

    drawn = draw(1)
    counts = Counter(drawn)
    for kind, share in mix.items():
        assert abs(counts[kind] - 1e5 * share) <= 3 * np.sqrt(1e5 * share * (1 - share)), kind
    assert sum(counts.values()) == 100_000 and set(counts) == set(mix)
    assert draw(1) == drawn and draw(2) != drawn


def test_half_and_half_of_mixed_is_within_3_sigma() -> None:
    rng = np.random.default_rng(0)
    noisy = sum(mixed_text("mixed", "", TEXTS, KINDS, rng) == TEXTS[0] for _ in range(100_000))
    assert abs(noisy - 50_000) <= 3 * np.sqrt(1e5 / 4)


def test_the_draw_depends_on_sample_epoch_and_seed_alone() -> None:
    def chosen(key: str, epoch: int, seed: int) -> str:
        return choose_text(Sample(key, {}, "a dog", TEXTS, epoch, seed, KINDS), "random")

    one = [chosen(str(key), 0, 0) for key in range(200)]
    assert one == [chosen(str(key), 0, 0) for key in range(200)]
    assert one != [chosen(str(key), 1, 0) for key in range(200)] and one != [chosen(str(key), 0, 1) for key in range(200)]
    assert generator(0, 0, "a", "text").random() != generator(0, 0, "a", "crop").random()


@pytest.mark.parametrize("mix", [{"alt_text": 0.5}, {"alt_text": 1.5, "caption_short": -0.5}, {}, "cleanest"])
def test_a_mix_that_is_none_is_refused(mix: object) -> None:
    for objective in ("clip", "siglip"):
        with pytest.raises(TrainError, match="text"):
            make_objective(objective, {"text": mix})


def test_objectives_read_what_their_mix_needs() -> None:
    assert make_objective("clip").needs.columns == ("caption",)
    assert make_objective("clip", {"text": "random"}).needs.columns == ("caption", "texts")
    for mix in ("complement", dict(REVISIT_CLIP), dict(REVISIT_MLLM)):
        assert make_objective("siglip", {"text": mix}).needs.columns == ("caption", "texts", "kinds")
