"""near_dup and dedup through the machine: copies of pictures in a folder, moved distances, switched hashes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.chain import Chain
from pipeline.errors import Fatal, RecipeError
from pipeline.plan import make_plan
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, RunResult, run
from stages.demo.image_bytes import encode
from stages.images.hashes import has_pdq


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures; of the first a JPEG of low quality, one at half size, and one with other bytes and equal pixels; one that is a plain grey twice."""
    draw = np.random.default_rng(0)
    pictures = [cv2.resize(draw.integers(0, 256, (24, 32, 3)).astype(np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC) for _ in range(5)]
    made = tmp_path / "images"
    made.mkdir()
    for at, pixels in enumerate(pictures):
        (made / f"p{at}.png").write_bytes(encode(pixels, "png"))
    (made / "p0-low.jpg").write_bytes(encode(pictures[0], "jpg", 60))
    (made / "p0-half.jpg").write_bytes(encode(cv2.resize(pictures[0], (160, 120), interpolation=cv2.INTER_AREA), "jpg", 90))
    (made / "p0-webp.webp").write_bytes(encode(pictures[0], "webp", 101))
    (made / "p0-same.png").write_bytes((made / "p0.png").read_bytes())
    for name, level in (("grey1", 100), ("grey2", 101)):
        (made / f"{name}.png").write_bytes(encode(np.full((200, 200, 3), level, np.uint8), "png"))
    return made


def ran(folder: Path, out: Path, near: dict, dedup: dict, pdq: bool = False) -> RunResult:
    data = {
        "name": "near",
        "input": {"kind": "image_folder", "folder": str(folder), "rows_per_part": 4},
        "stages": ["read_images", {"image_hash": {"pdq": pdq}}, {"near_dup": {"by": "phash", **near}}, {"dedup": dedup}],
    }
    return run(build_recipe(data), out, RunOptions(executor="local", jobs=False))


def fates(result: RunResult) -> dict[str, tuple]:
    """Name of each image -> why it went ('' if it stayed), bits off its keeper."""
    found = {}
    for part in range(len(result.view.parts)):
        view = result.view.view(part)
        reasons = result.view.final(view)["reason"].to_pylist()
        for row, reason in zip(result.view.read(view, ["path", "distance", "dup_component"]).to_pylist(), reasons, strict=True):
            found[row["path"]] = (reason or "", row["distance"], row["dup_component"])
    return found


def test_copies_go_and_the_largest_picture_stays(folder: Path, tmp_path: Path) -> None:
    found = fates(ran(folder, tmp_path / "run", {}, {}))
    gone = {name: fate[0] for name, fate in found.items() if fate[0]}
    assert gone.pop("p0-half.jpg") == "near_dup"  # fewer pixels than the others
    others = {"p0.png", "p0-same.png", "p0-low.jpg", "p0-webp.webp"}
    assert len(gone) == 3 and set(gone) <= others and sorted(gone.values()).count("exact_dup") == 1
    assert len({found[name][2] for name in others | {"p0-half.jpg"}}) == 1
    assert all(found[name] == ("", None, None) for name in ("p1.png", "p2.png", "grey1.png", "grey2.png"))


def test_a_moved_distance_computes_no_hash_and_gives_what_a_fresh_run_gives(folder: Path, tmp_path: Path) -> None:
    first = ran(folder, tmp_path / "run", {}, {})
    assert first.tally.computed["image_hash"] == 11
    for distance in (0, 12, 3):
        moved = ran(folder, tmp_path / "run", {}, {"max_distance": distance})
        assert sum(moved.tally.computed.values()) == 0
        assert fates(moved) == fates(ran(folder, tmp_path / f"fresh-{distance}", {}, {"max_distance": distance}))
    with pytest.raises(Fatal, match="raise near_dup.search_distance"):
        ran(folder, tmp_path / "run", {}, {"max_distance": 13})
    wider = ran(folder, tmp_path / "run", {"search_distance": 14}, {"max_distance": 13})
    assert sum(wider.tally.computed.values()) == 0


@pytest.mark.skipif(not has_pdq(), reason="pdqhash is not installed")
def test_the_hash_that_is_compared_can_be_switched_without_hashing(folder: Path, tmp_path: Path) -> None:
    first = ran(folder, tmp_path / "run", {}, {}, pdq=True)
    switched = ran(folder, tmp_path / "run", {"by": "pdq"}, {}, pdq=True)
    assert sum(switched.tally.computed.values()) == 0
    assert {name for name, fate in fates(switched).items() if fate[0]} == {name for name, fate in fates(first).items() if fate[0]}


def chain_of(folder: Path, *stages: object) -> Chain:
    data = {"name": "near", "input": {"kind": "image_folder", "folder": str(folder)}, "stages": ["read_images", {"image_hash": {"pdq": False}}, *stages]}
    return Chain(build_recipe(data))


def test_a_stage_that_may_drop_rows_between_the_search_and_the_decision_is_refused(folder: Path) -> None:
    """near_dup names the first row of each hash; were it gone before dedup, its copies would all stay."""
    near, select = {"near_dup": {"by": "phash"}}, {"select": {"where": "width > 200"}}
    with pytest.raises(RecipeError, match="stages.select: may drop rows that near_dup names for dedup.*put it before near_dup or behind dedup"):
        chain_of(folder, near, select, "dedup")
    with pytest.raises(RecipeError, match="stages.again: may drop rows"):  # a row that cannot be measured ends there
        chain_of(folder, near, {"again": {"use": "image_hash", "pdq": False}}, "dedup")
    chain_of(folder, select, near, "dedup")
    chain_of(folder, near, "dedup", select)
    chain_of(folder, near, {"levels": {"column": "width"}}, "dedup")
    assert chain_of(folder, near, select).nodes[-1].stage is not None  # without a decision nothing is missed


def test_plan_tells_what_an_earlier_barrier_would_save_and_cost(folder: Path, tmp_path: Path) -> None:
    data = {
        "name": "near", "input": {"kind": "image_folder", "folder": str(folder), "rows_per_part": 4}, "models": {"teller": {"kind": "fake"}},
        "stages": ["read_images", {"image_hash": {"pdq": False}}, {"mllm_score": {"model": "teller"}},
                   {"near_dup": {"by": "phash"}}, "dedup"],
    }  # fmt: skip
    [note] = make_plan(build_recipe(data), None).notes
    assert note.startswith("an earlier barrier, near_dup, dedup before mllm_score: saves mllm_score of the rows that dedup drops, of up to 11;")
    dropped = run(build_recipe(data), tmp_path / "run", RunOptions(executor="local", jobs=False)).view.counts()["dedup"]["dropped"]
    [note] = make_plan(build_recipe(data), tmp_path / "run").notes
    assert f"saves {dropped} of the 11 rows that mllm_score measured here, which dedup drops (some " in note
    assert "begins only when read_images, image_hash went over all parts, an overlap of up to" in note
    assert not make_plan(build_recipe({**data, "decide": "late"}), None).notes  # then every row is measured, dropped or not
    data["stages"].append({"balance": {"caps": [{"by": "image_text_matching", "max": 1}]}})
    assert len(make_plan(build_recipe(data), None).notes) == 1  # no such note of balance: it reads what only the model makes
