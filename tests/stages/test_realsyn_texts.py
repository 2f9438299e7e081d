"""RealSyn (arXiv 2502.12513) on 2,000 sentences and 200 pictures: each planted bad sentence goes by its own rule, equal ones leave one, retrieval in two
steps finds what a search of all finds, and caps keep exactly what they must. Pictures and their duplicates: test_realsyn_duplicates.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import registry
from pipeline.errors import Fatal, RecipeError
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run
from pipeline.stage import Evidence, Vector, VectorBlock
from stages.nearest_texts import NearestTexts

SENTENCES, IMAGES, TOPICS, WIDTH = 2000, 200, 20, 32
NOUNS = "dog cat boat bridge train horse child woman bird house".split()
PLACES = "on the beach|by the river|in the snow|at the market|near the church|under the trees|behind the old mill".split("|")


def sentence(number: int) -> str:
    return f"the {NOUNS[number % 10]} and the {NOUNS[number // 10 % 10]} {PLACES[number // 100 % 7]} in {1200 + number}"


def corpus() -> list[tuple[str, str | None]]:
    """2,000 sentences, each with the reason why it must go, None where it must stay."""
    bad: list[tuple[str, str | None]] = []
    for nth in range(20):
        bad.append((f"{sentence(3000 + nth)} \U0001f600", "emoji"))
        bad.append((f"{sentence(3100 + nth)} seen at www.example{nth}.com", "url_text"))
        bad.append((f"the {NOUNS[nth % 10]}{nth}", "too_few_words"))
        bad.append((" ".join(["the"] * 40 + ["dog"] * 41 + [str(nth)]), "too_many_words"))
        bad.append((f"quixotic{nth} xylophone{nth} zeppelin{nth} yacht{nth}", "low_entropy"))
    good = [sentence(nth) for nth in range(SENTENCES - len(bad) - 20)]
    good[:2] = ["the dog runs", " ".join(["the dog runs in"] * 20 + ["the"])]  # 3 and 81 words stay
    every = [*bad, *((text, None) for text in good), *((good[nth * 7 + 5], "repeated") for nth in range(20))]
    return [every[at] for at in np.random.default_rng(0).permutation(len(every))]


def test_each_planted_sentence_goes_by_its_own_rule_and_of_equal_ones_one_stays(tmp_path: Path) -> None:
    table = corpus()
    assert len(table) == SENTENCES
    columns = {"url": [f"https://one.example/{nth % 3}" for nth in range(SENTENCES)], "alt_text": [text for text, _ in table]}
    pq.write_table(pa.table(columns), tmp_path / "sentences.parquet")
    recipe = {
        "input": {"kind": "url_table", "table": str(tmp_path / "sentences.parquet"), "rows_per_part": 700},
        "stages": [{"text_rules": {"preset": "realsyn"}}, {"balance": {"caps": [{"by": "text", "max": 1}]}}],
    }
    result = run(build_recipe(recipe), tmp_path / "run", RunOptions(executor="local", jobs=False))
    reasons = [reason for part in range(len(result.view.parts)) for reason in result.view.final(result.view.view(part))["reason"].to_pylist()]
    twice = {text for text, reason in table if reason == "repeated"}
    assert all(reason == wanted for (text, wanted), reason in zip(table, reasons, strict=True) if text not in twice)
    for text in twice:  # of equal sentences either may stay
        assert sorted(str(reason) for (own, _), reason in zip(table, reasons, strict=True) if own == text) == ["None", "balanced_out"]
    assert len(twice) == 20 and reasons.count(None) == SENTENCES - 120


def topics(draw: np.random.Generator, count: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Vectors float32 [count, WIDTH] around TOPICS directions, and the topic of each."""
    centres = np.random.default_rng(1).standard_normal((TOPICS, WIDTH))
    of = np.arange(count) % TOPICS
    return (centres[of] + spread * draw.standard_normal((count, WIDTH))).astype(np.float32), of


def evidence_of(vectors: np.ndarray, per_part: int, scratch: Path) -> Evidence:
    """Images with these embeddings, cut into parts; rows of zeros have none."""
    con, there = duckdb.connect(), vectors.any(axis=1)
    rows = np.arange(len(vectors))
    place = {"part": (rows // per_part).astype(np.int32), "row": (rows % per_part).astype(np.int32)}
    con.register("incoming", pa.table({**place, "sample_id": [bytes([at % 256]) * 16 for at in rows.tolist()]}))
    con.execute("CREATE TABLE rows AS SELECT * FROM incoming")
    parts = [rows[start : start + per_part] for start in range(0, len(rows), per_part)]
    made = [VectorBlock(nth, (own[there[own]] % per_part).astype(np.int32), vectors[own[there[own]]]) for nth, own in enumerate(parts)]
    return Evidence(con, len(rows), len(rows), vectors=lambda column: iter(made), scratch=scratch)


def retrieved(vectors: np.ndarray, folder: Path, per_part: int = 70, **params: Any) -> list[dict[str, Any]]:
    stage = NearestTexts(NearestTexts.Params(texts=str(folder / "texts.parquet"), **params))
    table = stage.resolve(evidence_of(vectors, per_part, folder)).order('part, "row"').to_arrow_table()
    assert table.column_names == ["part", "row", *stage.resolves]
    return table.cast(pa.schema([("part", pa.int32()), ("row", pa.int32()), *stage.resolves.items()])).to_pylist()


@pytest.fixture
def sentences(tmp_path: Path) -> tuple[Path, np.ndarray]:
    vectors, _ = topics(np.random.default_rng(2), SENTENCES, 0.25)
    vectors = vectors.astype(np.float16)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), WIDTH)
    pq.write_table(pa.table({"text": [sentence(nth) for nth in range(SENTENCES)], "embedding": lists}), tmp_path / "texts.parquet", row_group_size=300)
    return tmp_path, vectors.astype(np.float32)


def test_retrieval_in_two_steps_finds_what_a_search_of_all_finds(sentences: tuple[Path, np.ndarray]) -> None:
    folder, vectors = sentences
    draw = np.random.default_rng(3)
    planted = draw.choice(SENTENCES, IMAGES, replace=False)  # the best sentence of each image: nearly its own vector
    images = vectors[planted] + 0.02 * draw.standard_normal((IMAGES, WIDTH)).astype(np.float32)
    images[5] = 0
    found = retrieved(images.astype(np.float16), folder, count=TOPICS)
    unit = lambda rows: rows / np.maximum(np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True), 1e-12)  # noqa: E731
    cosines = unit(images.astype(np.float16)) @ unit(vectors).T
    hits = flat = 0
    assert len(found) == IMAGES - 1
    for one in found:
        image = one["part"] * 70 + one["row"]
        texts = [entry["text"] for entry in one["nearest_texts"]]
        best = np.argsort(-cosines[image], kind="stable")[:3]
        hits += texts[0] == sentence(planted[image])
        flat += len({sentence(nth) for nth in best.tolist()} & set(texts))
        told = [entry["clip_score"] for entry in one["nearest_texts"]]
        assert len(texts) == 3 and told == sorted(told, reverse=True)
        assert told == pytest.approx([cosines[image][int(text.rsplit(" ", 1)[1]) - 1200] for text in texts], abs=2e-3)
        assert {entry["kind"] for entry in one["nearest_texts"]} == {"retrieved"} and one["nearest_text"] == texts[0]
    assert hits >= 0.95 * (IMAGES - 1) and flat >= 0.95 * 3 * (IMAGES - 1)
    other = retrieved(images.astype(np.float16), folder, 13, count=TOPICS)
    assert [one["nearest_texts"] for one in other] == [one["nearest_texts"] for one in found]


def test_texts_are_retrieved_in_a_run(tmp_path: Path) -> None:
    registry.import_file(str(Path(__file__).with_name("balance_plugins.py")))
    texts = [f"{noun} of the {place}" for noun in NOUNS for place in PLACES]
    embed = registry.find("stage", "text_embedding").vector
    pq.write_table(pa.table({"text": texts, "embedding": [embed(text).tolist() for text in texts]}), tmp_path / "texts.parquet")
    rows = [f"{noun} {nth}" for nth in range(6) for noun in NOUNS]
    pq.write_table(pa.table({"url": [f"https://one.example/{nth}" for nth in range(60)], "alt_text": rows}), tmp_path / "rows.parquet")
    recipe = {
        "input": {"kind": "url_table", "table": str(tmp_path / "rows.parquet"), "rows_per_part": 25},
        "stages": ["text_embedding", {"nearest_texts": {"texts": str(tmp_path / "texts.parquet"), "count": 4, "top": 2}}],
    }
    view = run(build_recipe(recipe), tmp_path / "run", RunOptions(executor="local", jobs=False)).view
    for part in range(3):
        for row in view.read(view.view(part), ["alt_text", "nearest_text", "nearest_texts"]).to_pylist():
            assert {entry["text"].split()[0] for entry in row["nearest_texts"]} == {row["alt_text"].split()[0]}
            assert row["nearest_text"] == row["nearest_texts"][0]["text"] and len(row["nearest_texts"]) == 2
    assert view.facts()["nearest_texts"]["nearest_texts"] == {"texts": 70, "clusters": 4}


def test_options_and_files_that_do_not_fit(sentences: tuple[Path, np.ndarray]) -> None:
    folder, vectors = sentences
    images = np.concatenate([vectors[:1], -vectors[:1]]).astype(np.float16)
    near, far = retrieved(images, folder, min_cosine=0.9, top=5)
    assert 1 <= len(near["nearest_texts"]) <= 5 and near["nearest_texts"][0]["text"] == sentence(0) and far["nearest_texts"] == []
    with pytest.raises(Fatal, match="have 3 numbers, those of"):
        retrieved(np.ones((2, 3), np.float16), folder)
    binary = pa.array([row.tobytes() for row in vectors.astype(np.float16)], pa.binary(2 * WIDTH))
    pq.write_table(pa.table({"text": [sentence(nth) for nth in range(SENTENCES)], "embedding": binary}), folder / "texts.parquet")
    assert retrieved(images, folder, min_cosine=0.9, top=5) == [near, far]
    for column in (pa.array(["a"]), pa.array([[1.0], [1.0, 2.0]]), pa.array([[0.0], [0.0]])):
        pq.write_table(pa.table({"text": ["a"] * len(column), "embedding": column}), folder / "texts.parquet")
        with pytest.raises(Fatal, match="equally many numbers|all zeros"):
            retrieved(images, folder)
    with pytest.raises(RecipeError, match="nearest_texts.texts: cannot read"):
        NearestTexts.Params(texts=str(folder / "none.parquet"))
    stage = NearestTexts(NearestTexts.Params(texts=str(folder / "texts.parquet"), embeddings="alt_text"))
    stage.check({"alt_text": Vector()})
    with pytest.raises(RecipeError, match="not vectors"):
        stage.check({"alt_text": pa.string()})
