"""Tags and noun phrases against 30 captions done by hand (tests/data/captions/golden_phrases.txt), and the rules one by one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from stages.text import tagger
from stages.text.phrases import chunk, noun_phrases, web_words
from stages.text.tagger import tag

GOLDEN = Path(__file__).parents[2] / "data" / "captions" / "golden_phrases.txt"
LETTERS = {
    "N": tagger.NOUN, "A": tagger.ADJECTIVE, "D": tagger.DETERMINER, "V": tagger.VERB, "P": tagger.PREPOSITION, "C": tagger.CONJUNCTION,
    "M": tagger.NUMBER, "R": tagger.ADVERB, "O": tagger.PRONOUN, "S": tagger.POSSESSIVE, ".": tagger.OTHER,
}  # fmt: skip


def golden() -> list[tuple[str, list[tuple[str, str]], list[str]]]:
    """(caption, its (word, class) pairs, its phrases) of each block."""
    blocks = [block.split("\n") for block in GOLDEN.read_text(encoding="utf-8").strip().split("\n\n")[1:]]
    pairs = [[word.rsplit("/", 1) for word in block[1].split()] for block in blocks]
    return [(block[0], [(word, LETTERS[kind]) for word, kind in of], block[2].split(" | ")) for block, of in zip(blocks, pairs, strict=True)]


@pytest.mark.parametrize(("caption", "pairs", "phrases"), golden(), ids=lambda value: value[:30] if isinstance(value, str) else "")
def test_noun_phrases_are_those_found_by_hand(caption: str, pairs: list[tuple[str, str]], phrases: list[str]) -> None:
    assert [token.text for token in tag(caption)] == [word for word, _ in pairs]
    assert noun_phrases(caption) == phrases


def test_the_tagger_errs_on_nine_of_430_words() -> None:
    tagged = [(token.text, token.kind, true) for caption, pairs, _ in golden() for token, (_, true) in zip(tag(caption), pairs, strict=True)]
    wrong = [word for word, kind, true in tagged if kind != true]
    assert len(golden()) == 30
    assert (len(tagged), sorted(wrong)) == (430, sorted(["next", "silver", "dozens", "cutting", "british", "deep", "several", "nobody", "most"]))


def test_generic_web_words_are_61_and_are_left_out() -> None:
    assert len(web_words()) == 61
    assert noun_phrases("Download free stock photos of a wooden door icon") == ["a wooden door"]


def test_phrases_of_stop_words_and_repeated_phrases_are_left_out() -> None:
    assert noun_phrases("The left side of the house, the front of the house and the other one") == ["the house"]


def test_only_the_first_twenty_phrases_are_kept() -> None:
    names = "cat dog cow horse goat sheep pig duck hen fox wolf bear lion tiger zebra camel llama mouse rat frog snake crab".split()
    found = noun_phrases(", ".join(f"a {name}" for name in names))
    assert found == [f"a {name}" for name in names[:20]]


def test_a_phrase_knows_its_parts() -> None:
    (phrase,) = chunk(tag("the tall old stone towers"))
    assert (phrase.determiner, phrase.adjectives, phrase.nouns, phrase.lemma) == ("the", ("tall", "old"), ("stone", "towers"), "tower")
    assert phrase.name == "tall old stone towers"


def test_texts_without_words_have_no_phrases() -> None:
    assert [noun_phrases(text) for text in ("", " ", "...", "!!! --", "\u200f\u200f", "🙂")] == [[]] * 6


def test_a_word_of_any_length_and_a_text_of_any_length_take_bounded_time() -> None:
    noun_phrases("a warm start")
    started = time.process_time()
    assert noun_phrases("a " + "x" * 60_000 + " door") == ["a " + "x" * 60_000 + " door"]
    assert len(tag("red doors " * 10_000)) == tagger.MAX_TOKENS
    assert time.process_time() - started < 2
