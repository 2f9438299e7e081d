"""Assertions against 20 captions counted by hand, sentences, distinct nouns, and the order of the three caption formats."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest

from stages.text.assertions import Richness, richness
from stages.text.sentences import split_sentences

GOLDEN = Path(__file__).parents[2] / "data" / "captions" / "golden_assertions.txt"
LINES = [line.split("\t") for line in GOLDEN.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


@pytest.mark.parametrize(("assertions", "sentences", "caption"), [line[1:] for line in LINES], ids=lambda value: value[:30])
def test_assertions_and_sentences_are_those_counted_by_hand(assertions: str, sentences: str, caption: str) -> None:
    found = richness(caption)
    assert (found.assertions, found.sentences) == (int(assertions), int(sentences))


def test_longer_formats_state_more() -> None:
    assert len(LINES) == 20
    average = {kind: mean(richness(line[3]).assertions for line in LINES if line[0] == kind) for kind in ("short", "descriptive", "dense")}
    assert average["short"] < average["descriptive"] < average["dense"]
    assert average == pytest.approx({"short": 29 / 12, "descriptive": 69 / 6, "dense": 38})


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("this shows a cat", 1),  # what stands before the first entity states nothing
        ("the photo shows a cat on a mat", 1),
        ("a cat and a mat", 2),
        ("a cat sits on a mat", 1),
        ("a cat that sits and sleeps on a mat", 2),
        ("the animal is a cat", 1),
        ("a ring larger than a star", 1),
        ("In the park, children play", 2),
        ("a star at the top left", 1),
        ("", 0),
        ("...", 0),
        ("123", 1),
    ],
)
def test_the_rule_case_by_case(text: str, count: int) -> None:
    assert richness(text).assertions == count


def test_distinct_nouns_are_counted_by_dictionary_form_without_generic_words() -> None:
    assert richness("A photo of two dogs. One dog chases a ball, the other dogs sleep on the left.") == Richness(4, 2, 2)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("A cat. A dog!", ["A cat.", "A dog!"]),
        ("Dr. Smith measures 3.5 m at St. Paul by J. Wren. It is late.", ["Dr. Smith measures 3.5 m at St. Paul by J. Wren.", "It is late."]),
        ("They meet at 5 p.m. The sun sets.", ["They meet at 5 p.m.", "The sun sets."]),
        ('He says "stop." Then he goes', ['He says "stop."', "Then he goes"]),
        ("one\ntwo</s>three", ["one", "two", "three"]),
        ("... \n .", []),
        ("一只猫。两只狗。", ["一只猫。", "两只狗。"]),
    ],
)
def test_sentences_end_where_they_end(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_fidelity_splits_as_the_released_loader_does() -> None:
    assert split_sentences("A 3.5 m wall.\nDr. Smith waves! </s>ok.", "fidelity") == ["A 3", "5 m wall", "Dr", "Smith waves!", "ok"]
