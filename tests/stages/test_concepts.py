"""Concepts at their characters, at a tokenizer's tokens, and before a text."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import RecipeError
from pipeline.stage import Context
from schemas.sample import make_text
from stages.concept_prefix import ConceptPrefix
from stages.concepts import CONCEPTS, Concepts
from stages.pretrain.concept_tokens import concept_tokens, token_offsets, token_spans
from stages.text.concepts import Dictionary, noun_phrase_spans, triples
from stages.text.stored_spans import spans_of
from stages.text.tagger import spans_of_words, tokenize

CTX = Context("concepts", 0)


def surfaces(text: str, spans: list) -> list[tuple[str, str]]:
    return [(span.id, text[span.start : span.end]) for span in spans]


def test_words_stand_where_their_spans_say() -> None:
    for text in ("The dog's tail isn't o’clock – Zoë’s, #9 & a_b", "", "İ wasn’t re-run 3.5", "n't 's"):
        spans = spans_of_words(text)
        assert [text[start:end].replace("’", "'") for start, end in spans] == [word.replace("’", "'") for word in tokenize(text)]
        assert all(a < b <= c for (a, b), (c, _) in zip(spans, spans[1:], strict=False))


def test_noun_phrases_are_spans_of_the_text_as_written() -> None:
    pytest.importorskip("HanTa")
    text = "A photo of the Big Red dog's tail near New York"
    assert surfaces(text, noun_phrase_spans(text)) == [("big red dog", "Big Red dog"), ("tail", "tail"), ("new york", "New York")]


def test_a_dictionary_finds_the_longest_name_and_links_what_is_like_one() -> None:
    names = [("C1", "Red Dog"), ("C2", "dog"), ("C3", "New York"), ("C4", "New York City"), ("C5", "pulmonary embolisms")]
    text = "a RED DOG, another dog; new york and New York city. hotdog, New, York"
    assert surfaces(text, Dictionary(names).spans(text)) == [("C1", "RED DOG"), ("C2", "dog"), ("C3", "new york"), ("C4", "New York city")]
    pytest.importorskip("HanTa")
    text = "The scan shows a pulmonary embolism and a dog"
    found = Dictionary(names, 0.8).spans(text)
    assert surfaces(text, found) == [("C5", "pulmonary embolism"), ("C2", "dog")]
    a, b = triples("pulmonary embolism"), triples("pulmonary embolisms")
    cosine = sum(n * b.get(triple, 0) for triple, n in a.items()) / (sum(n * n for n in a.values()) * sum(n * n for n in b.values())) ** 0.5
    assert found[0].score == round(cosine, 4) and 0.8 < found[0].score < 1
    assert surfaces(text, Dictionary(names, 0.99).spans(text)) == [("C2", "dog")]


def test_the_stage_gives_each_text_its_spans_and_they_are_found_again_in_any_order(tmp_path: Path) -> None:
    file = tmp_path / "names.tsv"
    file.write_text("# id, name\nC1\tred ball\nC2\tsea\nplain name\n")
    stage = Concepts(Concepts.Params(dictionary=str(file), min_score=1))
    row = {"texts": [make_text("the sea and a red ball"), make_text(""), make_text("nothing"), make_text("a Plain name")]}
    [values] = stage.compute([row], CTX)
    stored = pa.array([values["concepts"]], CONCEPTS)[0].as_py()
    assert [len(entry["spans"]) for entry in stored] == [2, 0, 1]
    assert [(span["id"], span["start_char"], span["end_char"]) for span in spans_of(stored[::-1], "the sea and a red ball")] == [("C2", 4, 7), ("C1", 14, 22)]
    assert spans_of(stored, "a Plain name")[0]["id"] == "plain name" and spans_of(stored, "no such text") == []
    assert stage.compute([{"texts": "by the sea"}], CTX)[0]["concepts"][0]["spans"][0]["score"] == 1.0
    with pytest.raises(RecipeError, match="concepts.dictionary: cannot read"):
        Concepts.Params(dictionary=str(tmp_path / "none.tsv"))
    file.write_text("# nothing\n")
    with pytest.raises(RecipeError, match="has no names"):
        Concepts(Concepts.Params(dictionary=str(file))).check({})


def hundred_strings() -> list[tuple[str, list[tuple[int, int]]]]:
    """Texts with planted spans: letters with accents, capitals, emojis, punctuation, further spaces."""
    draw = random.Random(0)
    words = "Café naïve RED hound's pneumothorax 123 x-ray (left) Łódź 犬 🐕 über-cool antidisestablishmentarianism ball".split()
    made = []
    for _ in range(100):
        text, spans = "", []
        for _ in range(draw.randint(2, 9)):
            text += draw.choice(["", " ", "  "]) if text == "" else draw.choice([" ", " ", "  ", ", "])
            start = len(text)
            text += draw.choice(words)
            if draw.random() < 0.5:
                spans.append((start, len(text)))
        made.append((text, spans))
    return made


def test_conceptclip_acceptance_spans_round_trip_on_100_strings() -> None:
    pytest.importorskip("open_clip")
    from stages.models.tokenize import CachedTokenizer

    tokenizer = CachedTokenizer(context_length=77)
    decoded = 0
    for text, spans in hundred_strings():
        ids = tokenizer([text])[0].tolist()
        offsets, first = token_offsets(tokenizer, text)
        assert first == 1 and len(offsets) == ids.index(49407) - 1
        given = [{"id": str(nth), "start_char": start, "end_char": end} for nth, (start, end) in enumerate(spans)]
        found = concept_tokens(tokenizer, text, given)
        assert [one[0] for one in found] == [str(nth) for nth in range(len(spans))]
        for (start, end), (_, a, b) in zip(spans, found, strict=True):
            surface = tokenizer._tokenizer.decode(ids[a:b])
            # CLIP takes punctuation side by side for one token: the comma behind "(left)" is part of its last one.
            assert surface.replace(" ", "").rstrip(",") == text[start:end].lower()
            decoded += 1
    assert decoded > 200


def test_spans_cut_by_truncation_are_dropped_and_entities_do_not_shift_what_follows() -> None:
    pytest.importorskip("open_clip")
    from stages.models.tokenize import CachedTokenizer

    text = "one two three four five six"
    spans = [{"id": word, "start_char": text.index(word), "end_char": text.index(word) + len(word)} for word in text.split()]
    assert [one[0] for one in concept_tokens(CachedTokenizer(context_length=5), text, spans)] == ["one", "two", "three"]
    whole = {"id": "all", "start_char": 0, "end_char": len(text)}
    assert concept_tokens(CachedTokenizer(context_length=5), text, [whole]) == [] and concept_tokens(CachedTokenizer(8), text, [whole]) == [("all", 1, 7)]
    escaped = "salt &amp; pepper"
    tokenizer = CachedTokenizer(context_length=77)
    [(_, a, b)] = concept_tokens(tokenizer, escaped, [{"id": "p", "start_char": 11, "end_char": 17}])
    assert tokenizer._tokenizer.decode(tokenizer([escaped])[0].tolist()[a:b]).strip() == "pepper"
    assert token_spans([(0, 3), (5, 9)], [(0, 2), (2, 4)], 3) == [(3, 5), None]


def test_nevlp_the_most_similar_concepts_stand_before_the_text() -> None:
    stage = ConceptPrefix(ConceptPrefix.Params(of="objects", top=2))
    tags = [{"name": "dog", "score": 0.9}, {"name": "ball", "score": 0.7}, {"name": "sea", "score": 0.6}]
    rows = [{"objects.tags": tags, "text": "it {text} runs"}, {"objects.tags": [], "text": "x"}, {"objects.tags": tags, "text": None}]
    assert stage.reads == ("objects.tags", "text|alt_text")
    found = stage.compute(rows, CTX)
    assert found[0] == {"text": "dog, ball. it {text} runs", "prefix": "dog, ball"} and found[1] == found[2] == {"text": None, "prefix": None}
    other = ConceptPrefix(ConceptPrefix.Params(min_score=0.8, template="{text} ({concepts})"))
    assert other.compute([{"tags.tags": tags, "text": "it runs"}], CTX)[0]["text"] == "it runs (dog)"
    with pytest.raises(ValueError, match="template"):
        ConceptPrefix.Params(template="{concepts}")


def test_names_are_found_in_scripts_without_spaces_and_keep_their_vowel_signs() -> None:
    found = Dictionary([("D", "狗"), ("G", "草地"), ("K", "कुत्ता"), ("X", "कु"), ("E", "🐕"), ("C", "カメラ")])
    for text, expected in (
        ("🐕一只黑色的狗在草地上", [("E", "🐕"), ("D", "狗"), ("G", "草地")]),
        ("काला कुत्ता", [("K", "कुत्ता")]),  # not the letters of another name within a word
        ("カメラと狗、カメラマン", [("C", "カメラ"), ("D", "狗")]),
    ):
        assert [(span.id, text[span.start : span.end]) for span in found.spans(text)] == expected
