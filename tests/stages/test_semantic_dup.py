"""semantic_dup and the one decision of dedup: evidence of bytes, hashes and embeddings, through the machine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import registry
from pipeline.errors import Fatal, RecipeError
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, RunResult, run
from pipeline.stage import Vector
from stages.dedup import Dedup
from stages.exact_dup import ExactDup
from stages.semantic_dup import SEMANTIC, SemanticDup
from tests.pipeline.drivers import ten_kills

PLUGIN = Path(__file__).with_name("dup_rows.py")
registry.import_file(PLUGIN)
ROWS = 200


def recipe(semantic: dict | None, dedup: dict | None = None, near: bool = True, rows: int = ROWS, per_part: int = 60) -> dict:
    search = [{"near_dup": {"by": "phash"}}] if near else []
    search += [{"semantic_dup": semantic}] if semantic is not None else []
    source = {"kind": "numbers_of_dups", "rows": rows, "rows_per_part": per_part}
    return {"name": "dups", "input": source, "stages": ["planted_dups", *search, {"dedup": dedup or {}}]}


def ran(out: Path, *args, **options) -> RunResult:
    return run(build_recipe(recipe(*args, **options)), out, RunOptions(executor="local", jobs=False))


def fates(result: RunResult) -> dict[int, dict]:
    found = {}
    for part in range(len(result.view.parts)):
        view = result.view.view(part)
        verdict = result.view.final(view)
        columns = ["number", "kind", "distance", "cosine", "dup_of", "dup_component", "texts"]
        for row, reason, detail in zip(result.view.read(view, columns).to_pylist(), verdict["reason"].to_pylist(), verdict["detail"].to_pylist(), strict=True):
            found[row["number"]] = row | {"reason": reason, "detail": detail}
    return found


@pytest.fixture(scope="module")
def all_kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    return fates(ran(tmp_path_factory.mktemp("dups") / "run", {}))


def test_one_row_of_each_planted_component_stays_and_each_reason_is_its_own(all_kinds: dict[int, dict]) -> None:
    for number, row in all_kinds.items():
        kind = 0 if number // 4 % 5 == 4 else number % 4
        assert row["reason"] == (None, "exact_dup", "near_dup", "semantic_dup")[kind], row
        assert (row["dup_component"] is None) == (number // 4 % 5 == 4)
    assert Counter(row["reason"] for row in all_kinds.values()) == {None: 80, "exact_dup": 40, "near_dup": 40, "semantic_dup": 40}
    keeper, _, near, semantic = (all_kinds[number] for number in range(4))
    assert semantic["cosine"] == pytest.approx(0.96, abs=2e-3) and semantic["detail"] == f"{keeper['dup_component']}, cosine {semantic['cosine']:.4f}"
    assert (near["distance"], near["cosine"]) == (3, None) and near["detail"].endswith(", 3 bits")
    assert [entry["text"] for entry in keeper["texts"]] == [f"text {number}" for number in range(4)]
    assert len({row["dup_component"] for row in list(all_kinds.values())[:4]}) == 1


def test_a_moved_cosine_searches_nothing_and_gives_what_a_fresh_run_gives(tmp_path: Path) -> None:
    ran(tmp_path / "run", {})
    moved = ran(tmp_path / "run", {}, {"min_cosine": 0.97})
    assert sum(moved.tally.computed.values()) == 0
    found = fates(moved)
    assert sum(row["reason"] is not None for row in found.values()) == 80
    assert found == fates(ran(tmp_path / "fresh", {}, {"min_cosine": 0.97}, per_part=33))
    with pytest.raises(Fatal, match="lower semantic_dup.search_cosine"):
        ran(tmp_path / "run", {}, {"min_cosine": 0.89})


def test_without_hashes_embeddings_decide_alone_and_without_either_bytes(tmp_path: Path) -> None:
    found = fates(ran(tmp_path / "semantic", {}, near=False))
    assert Counter(row["reason"] for row in found.values()) == {None: 120, "exact_dup": 40, "semantic_dup": 40}
    found = fates(ran(tmp_path / "bytes", None, near=False))
    assert Counter(row["reason"] for row in found.values()) == {None: 160, "exact_dup": 40}


def test_embeddings_count_only_where_the_pictures_look_alike_too(tmp_path: Path) -> None:
    """Planted semantic copies have unrelated hashes (32 bits off on average, here never below 15): only a loose limit lets their cosine decide."""
    for bits, gone in ((14, 80), (64, 120)):
        found = fates(ran(tmp_path / "run", {}, {"semantic_bits": bits}))
        assert sum(row["reason"] is not None for row in found.values()) == gone
    with pytest.raises(RecipeError, match="put image_hash before it"):
        Dedup(Dedup.Params(semantic_bits=24)).check({})


def test_limits_follow_a_narrower_search_and_texts_may_stay_apart(tmp_path: Path) -> None:
    data = recipe({"search_cosine": 0.97}, {"join_texts": False}, rows=40)
    data["stages"][1]["near_dup"]["search_distance"] = 3  # below the 6 bits of dedup, which takes what there is
    found = fates(run(build_recipe(data), tmp_path / "run", RunOptions(executor="local", jobs=False)))
    assert Counter(row["reason"] for row in found.values()) == {None: 24, "exact_dup": 8, "near_dup": 8}
    assert all([entry["text"] for entry in row["texts"]] == [f"text {number}"] for number, row in found.items())


def test_mistakes_are_named() -> None:
    stage = SemanticDup(SemanticDup.Params(embeddings="phash"))
    with pytest.raises(RecipeError, match="'phash' is no column of vectors"):
        stage.check({"phash": pa.binary()})
    stage.check({"phash": Vector("float16")})
    with pytest.raises(RecipeError, match="semantic_dup stands before it; put `dedup` here"):
        ExactDup(ExactDup.Params()).check({"semantic_evidence": SEMANTIC})


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stage", ["near_dup", "semantic_dup", "dedup"])
def test_ten_kills_during_a_resolve_change_nothing(tmp_path: Path, stage: str) -> None:
    whole = recipe({}, rows=2000, per_part=100)
    unbroken = fates(run(build_recipe(whole), tmp_path / "unbroken", RunOptions(executor="local", jobs=False)))
    folder = tmp_path / "run" / "resolved" / stage
    before = tmp_path / "run" / "verdicts" / {"near_dup": "planted_dups", "semantic_dup": "near_dup", "dedup": "semantic_dup"}[stage]
    ten_kills(PLUGIN, whole, tmp_path / "run", folder, before, 20)
    assert fates(run(build_recipe(whole), tmp_path / "run", RunOptions(executor="local", jobs=False))) == unbroken
