"""DreamLIP's sub-captions: what may be drawn, with and without replacement, every sentence in the end, and the same again by seed."""

from __future__ import annotations

from collections import Counter

import pytest

from stages.pretrain.draws import generator
from stages.pretrain.sub_captions import sampled_texts, sub_captions

CAPTIONS = ("A cat. A dog of 3.5 kg.", "A bird.\nA fish. A cow.")
SENTENCES = ["A cat.", "A dog of 3.5 kg.", "A bird.", "A fish.", "A cow."]


def drawn(count: int, epoch: int = 0, **options: object) -> list[str]:
    return sampled_texts("raw", CAPTIONS, count, generator(7, epoch, "key", "sub_captions"), **options)  # type: ignore[arg-type]


def test_raw_stands_first_and_sentences_are_drawn_once_where_there_are_enough() -> None:
    texts = drawn(5)
    assert texts[0] == "raw" and sorted(texts[1:]) == sorted(SENTENCES)
    assert len(set(drawn(3)[1:])) == 3


def test_with_fewer_sentences_than_asked_for_they_are_drawn_again() -> None:
    texts = drawn(9)[1:]
    assert len(texts) == 9 and set(texts) <= set(SENTENCES)


def test_every_sentence_is_drawn_equally_often_the_last_one_too() -> None:
    epochs = 4000
    counted = Counter(text for epoch in range(epochs) for text in drawn(2, epoch)[1:])
    sigma = (epochs * 0.4 * 0.6) ** 0.5
    assert set(counted) == set(SENTENCES) and all(abs(n - epochs * 0.4) < 4 * sigma for n in counted.values())


def test_draws_are_a_function_of_the_epoch() -> None:
    assert drawn(3, 1) == drawn(3, 1) and len({tuple(drawn(3, epoch)) for epoch in range(20)}) > 5


def test_adjacent_sentences_are_merged_within_a_caption() -> None:
    assert sub_captions(CAPTIONS, merged=2) == ["A cat. A dog of 3.5 kg.", "A bird. A fish.", "A fish. A cow."]
    assert sub_captions(CAPTIONS, merged=9) == ["A cat. A dog of 3.5 kg.", "A bird. A fish. A cow."]


def test_fidelity_splits_and_joins_as_the_released_loader() -> None:
    assert sub_captions(CAPTIONS, mode="fidelity") == ["A cat", "A dog of 3", "5 kg", "A bird", "A fish", "A cow"]
    assert sub_captions(("A cat. A dog.",), merged=2, mode="fidelity") == ["A cat. A dog"]


@pytest.mark.parametrize("captions", [(), ("",), ("...", "\n")])
def test_without_sentences_raw_stands_in(captions: tuple[str, ...]) -> None:
    assert sampled_texts("raw", captions, 3, generator(0, 0, "key", "sub_captions")) == ["raw"] * 4
