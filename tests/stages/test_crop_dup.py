"""crop_dup through the machine: crops that neither hash nor cosine finds, other scenes with as near an embedding, moved limits."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from pipeline import registry
from pipeline.errors import Fatal, RecipeError
from pipeline.recipe import Recipe, build_recipe
from pipeline.recut import prepare_recut
from pipeline.run import RunOptions, RunResult, run
from pipeline.stage import Vector
from stages.crop_dup import CropDup
from stages.demo.image_bytes import encode
from stages.demo.scenes import draw_scene, render
from tests.bench import bench_whatif
from tests.pipeline.drivers import ten_kills
from tests.pipeline.test_random_sequences import tree_digest

PLUGIN = Path(__file__).with_name("crop_rows.py")
registry.import_file(PLUGIN)
ROWS = 24


def recipe_of(crop: dict | None, dedup: dict | None = None, rows: int = ROWS, per_part: int = 10) -> dict:
    search = [{"near_dup": {"by": "phash"}}, {"semantic_dup": {"search_cosine": 0.85}}, *([] if crop is None else [{"crop_dup": crop}])]
    source = {"kind": "numbers_of_dups", "rows": rows, "rows_per_part": per_part}
    return {"name": "crops", "input": source, "stages": ["planted_crops", *search, {"dedup": {"min_cosine": 0.95, "max_difference": 11} | (dedup or {})}]}


def ran(out: Path, crop: dict | None, dedup: dict | None = None, per_part: int = 10) -> RunResult:
    return run(build_recipe(recipe_of(crop, dedup, per_part=per_part)), out, RunOptions(executor="local", jobs=False))


def fates(result: RunResult, key: str = "number") -> dict:
    found = {}
    for part in range(len(result.view.parts)):
        view = result.view.view(part)
        verdict = result.view.final(view)
        table = result.view.read(view, [key, "kind", "distance", "match", "dup_of", "dup_component"]).to_pylist()
        for row, reason, detail in zip(table, verdict["reason"].to_pylist(), verdict["detail"].to_pylist(), strict=True):
            found[row[key]] = row | {"reason": reason, "detail": detail}
    return found


def test_a_crop_that_hash_and_cosine_miss_goes_and_another_scene_of_like_cosine_stays(tmp_path: Path) -> None:
    assert all(row["reason"] is None for row in fates(ran(tmp_path / "without", None)).values()), "bits and cosine alone find none of them"
    first = ran(tmp_path / "run", {})
    found = fates(first)
    for number, row in found.items():
        if number % 3 == 1:
            keeper = found[number - 1]
            assert row["reason"] == "near_dup" and row["dup_component"] == keeper["dup_component"] == row["dup_of"]
            assert row["distance"] > 6 and row["match"] >= 0.9
            assert row["detail"] == f"{row['dup_of']}, {row['distance']} bits, match {row['match']:.4f}"
        else:
            assert row["reason"] is None and (number % 3 == 0) == (row["dup_component"] is not None)


def test_moved_limits_measure_nothing_and_give_what_a_fresh_run_and_whatif_give(tmp_path: Path) -> None:
    matches = sorted(row["match"] for number, row in fates(ran(tmp_path / "run", {})).items() if number % 3 == 1)
    least = round(float(matches[3]) + 1e-4, 4)  # between two of the planted crops
    assert bench_whatif.check(tmp_path / "run", tmp_path / "beside", [f"dedup.min_match={least}"]) == 0
    assert bench_whatif.check(tmp_path / "run", tmp_path / "nearer", ["dedup.max_difference=6.5"]) == 0
    moved = ran(tmp_path / "run", {}, {"min_match": least})
    assert sum(moved.tally.computed.values()) == 0
    found = fates(moved)
    assert sum(row["reason"] is not None for row in found.values()) == sum(match >= least for match in matches) == 4
    assert found == fates(ran(tmp_path / "fresh", {}, {"min_match": least}, per_part=7))
    nearer = fates(ran(tmp_path / "run", {}, {"max_difference": 6.5}))
    assert 0 < sum(row["reason"] is not None for row in nearer.values()) < 8
    assert nearer == fates(ran(tmp_path / "narrow", {"search_difference": 6.5}, {"max_difference": None}))
    with pytest.raises(Fatal, match="raise crop_dup.search_difference"):
        ran(tmp_path / "run", {}, {"max_difference": 20.5})


def test_near_embeddings_join_only_what_differs_nowhere(tmp_path: Path) -> None:
    """The other scene of each group has as near an embedding as the crop; a match alone could not join either here."""
    alone = fates(ran(tmp_path / "run", None, {"min_cosine": 0.9}))
    assert sum(row["reason"] is not None for row in alone.values()) == 16
    seen = fates(ran(tmp_path / "run", {}, {"min_cosine": 0.9, "min_match": 1.0}))
    assert {number for number, row in seen.items() if row["reason"] == "semantic_dup"} == {number for number in seen if number % 3 == 1}


def test_near_hashes_join_what_differs_only_without_a_limit_on_it(tmp_path: Path) -> None:
    """All hashes are near at 30 bits; of a group the third row shows another scene."""
    def gone(**dedup: float) -> set[int]:
        recipe = recipe_of({"search_difference": 30}, {"max_distance": 30, "min_match": 1.0, "min_cosine": 1.0} | dedup)
        recipe["stages"][1] = {"near_dup": {"by": "phash", "search_distance": 30}}
        return {number for number, row in fates(run(build_recipe(recipe), tmp_path / "run", RunOptions(executor="local", jobs=False))).items() if row["reason"]}

    crops = {number for number in range(ROWS) if number % 3 == 1}
    assert gone() > crops and gone(hash_difference=30) == crops
    with pytest.raises(Fatal, match="hash_difference 31 is more than the 30"):
        gone(hash_difference=31)


def test_recut_with_a_moved_match_equals_a_fresh_run(tmp_path: Path) -> None:
    """Framed copies that near_dup finds and the match decides on: none is joined by its hash alone."""
    (tmp_path / "images").mkdir()
    for number in range(6):
        own = render(draw_scene(620_000_000 + number, 6))
        framed = cv2.copyMakeBorder(own, 6, 6, 6, 6, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        written = cv2.putText(own.copy(), "www", (20, 118), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1 + number % 3, cv2.LINE_AA)
        for name, pixels in (("own", own), ("framed", framed), ("written", written)):
            (tmp_path / "images" / f"{number}{name}.png").write_bytes(encode(pixels, "png"))
            (tmp_path / "images" / f"{number}{name}.txt").write_text(f"a scene, {name}")

    def recipe(**dedup: float) -> Recipe:
        hashes = {"image_hash": {"pdq": False, "thumbnail": True}}
        near = {"near_dup": {"by": "phash", "search_distance": 30, "min_quality": 0}}
        stages = ["read_images", hashes, near, "crop_dup", {"dedup": {"max_distance": 0} | dedup}]
        source = {"kind": "image_folder", "folder": str(tmp_path / "images"), "rows_per_part": 7}
        return build_recipe({"name": "cut", "input": source, "stages": stages, "jobs": ["write_shards"]})

    local = RunOptions(executor="local", measures=False)
    found = [row["match"] for row in fates(run(recipe(), tmp_path / "run", local), "path").values() if row["match"]]
    least = round(float(np.median(found)) + 1e-4, 4)
    changed = prepare_recut(str(tmp_path / "run"), [f"dedup.min_match={least}"], str(tmp_path / "other"))
    other = run(changed.recipe, tmp_path / "other", local, facts=changed.chain.facts)
    assert sum(other.tally.computed.values()) == 0
    fresh = run(recipe(min_match=least), tmp_path / "fresh", local)
    assert 0 < sum(row["reason"] is not None for row in fates(fresh, "path").values()) < len(found)
    assert tree_digest(tmp_path / "other" / "dataset") == tree_digest(tmp_path / "fresh" / "dataset") != tree_digest(tmp_path / "run" / "dataset")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_kills_during_the_resolve_change_nothing(tmp_path: Path) -> None:
    whole = recipe_of({"search_difference": 30}, {}, rows=600, per_part=30)
    folder, before = (tmp_path / "run" / name for name in ("resolved/crop_dup", "verdicts/semantic_dup"))
    ten_kills(PLUGIN, whole, tmp_path / "run", folder, before, 20)
    local = RunOptions(executor="local", jobs=False)
    assert fates(run(build_recipe(whole), tmp_path / "run", local)) == fates(run(build_recipe(whole), tmp_path / "unbroken", local))


def test_only_pairs_within_its_limits_are_looked_at(tmp_path: Path) -> None:
    assert all(row["reason"] is None for row in fates(ran(tmp_path / "run", {"min_cosine": 0.93, "max_distance": 0})).values())


def test_mistakes_are_named() -> None:
    stage = CropDup(CropDup.Params())
    with pytest.raises(RecipeError, match="thumbnail: true"):
        stage.check({"near_evidence": pa.null()})
    with pytest.raises(RecipeError, match="put one of them before it"):
        stage.check({"thumbnail": Vector("uint8")})
    stage.check({"thumbnail": Vector("uint8"), "near_evidence": pa.null()})
