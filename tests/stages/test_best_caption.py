"""best_caption: the planted best of N is found in every case, ties and missing candidates, and recipes that cannot work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.models import LocalModel
from pipeline.stage import Context
from stages.best_caption import BestCaption

CTX = Context("best_caption", 0)
NAMES = tuple(f"c{at}" for at in range(5))


def test_the_planted_best_of_five_is_found_in_all_of_a_hundred_rows() -> None:
    pytest.importorskip("open_clip")
    from stages.models import open_clip as kind

    clip = kind.load({"kind": "open_clip", "name": "ViT-S-32-alt", "weights": "random", "batch_size": 64, "device": "cpu", "threads": 1})
    rng = np.random.default_rng(0)
    words = "red blue green small large old new dog cat car tree house boat ring star".split()
    texts = [" ".join(rng.choice(words, 6)) for _ in range(100 * len(NAMES))]
    embedded = clip.embed_texts(texts)
    best = rng.integers(len(NAMES), size=100)
    rows = []
    for at in range(100):
        image = embedded[at * 5 + best[at]] + rng.normal(0, 0.002, embedded.shape[1])  # nearest to the planted one, not equal to it
        rows.append({f"{name}.text": texts[at * 5 + n] for n, name in enumerate(NAMES)} | {"image_emb": image.astype(np.float16).tobytes()})
    stage, handle = BestCaption(BestCaption.Params(of=NAMES, model="clip")), LocalModel(clip)
    ctx = Context("best_caption", 0, model=handle)
    found = stage.finish(rows, handle.submit(stage.model_method, stage.prepare(rows, ctx)).result(), ctx)
    assert [values["of"] for values in found] == [NAMES[at] for at in best]
    assert all(values["text"] == row[f"{values['of']}.text"] and values["score"] == max(values["scores"]) for values, row in zip(found, rows, strict=True))


def by_trust(texts: list[str | None], trust: list[float | None]) -> Any:
    names = NAMES[: len(texts)]
    stage = BestCaption(BestCaption.Params(of=names, by="trust", checks={name: f"k{name}" for name in names}))
    row = {f"{name}.text": text for name, text in zip(names, texts, strict=True)} | {f"k{name}.trust": one for name, one in zip(names, trust, strict=True)}
    (values,) = stage.compute([row], CTX)
    return values


def test_by_trust_the_most_trusted_wins_and_the_first_of_equals() -> None:
    assert by_trust(["a", "b", "c"], [0.2, 0.9, 0.5]) == {"text": "b", "of": "c1", "score": 0.9, "scores": [0.2, 0.9, 0.5]}
    assert by_trust(["a", "b", "c"], [0.5, 0.9, 0.9])["of"] == "c1"


def test_missing_candidates_are_passed_over() -> None:
    assert by_trust([None, " ", "c"], [None, None, 0.0])["of"] == "c2"
    assert by_trust(["a", None], [None, None]) == {"text": None, "of": None, "score": None, "scores": [None, None]}


def test_checks_must_belong_to_candidates_and_each_candidate_needs_one() -> None:
    with pytest.raises(ValueError, match="checks: 'c9' is not among `of`"):
        BestCaption.Params(of=("c0", "c1"), by="trust", checks={"c0": "a", "c1": "b", "c9": "c"})
    with pytest.raises(ValueError, match="`checks` has no caption_check for 'c1'"):
        BestCaption.Params(of=("c0", "c1"), by="trust", checks={"c0": "a"})
    with pytest.raises(ValueError, match="needs `model`"):
        BestCaption.Params(of=("c0", "c1"))
