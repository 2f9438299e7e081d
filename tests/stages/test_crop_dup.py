"""crop_dup through the machine: crops that neither hash nor cosine finds, other scenes with as near an embedding, moved limits."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import registry
from pipeline.errors import Fatal, RecipeError
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, RunResult, run
from pipeline.stage import Vector
from stages.crop_dup import CropDup
from tests.bench import bench_whatif

for name in ("dup_rows.py", "crop_rows.py"):
    registry.import_file(Path(__file__).with_name(name))
ROWS = 24


def ran(out: Path, crop: dict | None, dedup: dict | None = None, per_part: int = 10) -> RunResult:
    search = [{"near_dup": {"by": "phash"}}, {"semantic_dup": {"search_cosine": 0.85}}, *([] if crop is None else [{"crop_dup": crop}])]
    data = {
        "name": "crops",
        "input": {"kind": "numbers_of_dups", "rows": ROWS, "rows_per_part": per_part},
        "stages": ["planted_crops", *search, {"dedup": {"min_cosine": 0.95} | (dedup or {})}],
    }
    return run(build_recipe(data), out, RunOptions(executor="local", jobs=False))


def fates(result: RunResult) -> dict[int, dict]:
    found = {}
    for part in range(len(result.view.parts)):
        view = result.view.view(part)
        verdict = result.view.final(view)
        table = result.view.read(view, ["number", "kind", "distance", "match", "dup_of", "dup_component"]).to_pylist()
        for row, reason, detail in zip(table, verdict["reason"].to_pylist(), verdict["detail"].to_pylist(), strict=True):
            found[row["number"]] = row | {"reason": reason, "detail": detail}
    return found


def test_a_crop_that_hash_and_cosine_miss_goes_and_another_scene_of_like_cosine_stays(tmp_path: Path) -> None:
    assert all(row["reason"] is None for row in fates(ran(tmp_path / "without", None)).values()), "bits and cosine alone find none of them"
    first = ran(tmp_path / "run", {})
    found = fates(first)
    for number, row in found.items():
        if number % 3 == 1:
            keeper = found[number - 1]
            assert row["reason"] == "near_dup" and row["dup_component"] == keeper["dup_component"] == row["dup_of"]
            assert row["distance"] > 6 and row["match"] >= 0.94
            assert row["detail"] == f"{row['dup_of']}, {row['distance']} bits, match {row['match']:.4f}"
        else:
            assert row["reason"] is None and (number % 3 == 0) == (row["dup_component"] is not None)


def test_a_moved_match_measures_nothing_and_gives_what_a_fresh_run_and_whatif_give(tmp_path: Path) -> None:
    matches = sorted(row["match"] for number, row in fates(ran(tmp_path / "run", {})).items() if number % 3 == 1)
    least = round(float(matches[3]) + 1e-4, 4)  # between two of the planted crops
    assert bench_whatif.check(tmp_path / "run", tmp_path / "beside", [f"dedup.min_match={least}"]) == 0
    assert bench_whatif.check(tmp_path / "run", tmp_path / "searched", [f"crop_dup.search_match={least}"]) == 0
    moved = ran(tmp_path / "run", {}, {"min_match": least})
    assert sum(moved.tally.computed.values()) == 0
    found = fates(moved)
    assert sum(row["reason"] is not None for row in found.values()) == sum(match >= least for match in matches) == 4
    assert found == fates(ran(tmp_path / "fresh", {}, {"min_match": least}, per_part=7)) == fates(ran(tmp_path / "narrow", {"search_match": least}))
    with pytest.raises(Fatal, match="lower crop_dup.search_match"):
        ran(tmp_path / "run", {}, {"min_match": 0.84})


def test_only_pairs_within_its_limits_are_looked_at(tmp_path: Path) -> None:
    assert all(row["reason"] is None for row in fates(ran(tmp_path / "run", {"min_cosine": 0.93, "max_distance": 0})).values())


def test_mistakes_are_named() -> None:
    stage = CropDup(CropDup.Params())
    with pytest.raises(RecipeError, match="thumbnail: true"):
        stage.check({"near_evidence": pa.null()})
    with pytest.raises(RecipeError, match="put one of them before it"):
        stage.check({"thumbnail": Vector("uint8")})
    stage.check({"thumbnail": Vector("uint8"), "near_evidence": pa.null()})
