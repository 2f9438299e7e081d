"""Captions, claims, checks and the best caption in the whole machine: accounting, what a changed threshold computes, wrong recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, RunResult, run
from tests.stages.conftest import jpeg_bytes

pytest.importorskip("open_clip")

CLIP = {"kind": "open_clip", "name": "ViT-S-32-alt", "weights": "random", "device": "cpu", "batch_size": 8}
CHECK = {"use": "caption_check", "model": "clip", "max_repeated": 1.0}
STAGES: list[Any] = [
    "read_images",
    {"clip_score": {"min": None}},
    {"caption_a": {"use": "caption"}},
    {"caption_b": {"use": "caption", "prompt": "caption_brief"}},
    {"claims_a": {"use": "claims", "of": "caption_a", "probability": True}},
    {"check_a": {**CHECK, "of": "caption_a", "claims": "claims_a"}},
    {"check_b": {**CHECK, "of": "caption_b"}},
    {"best": {"use": "best_caption", "of": ["caption_a", "caption_b"], "by": "trust", "checks": {"caption_a": "check_a", "caption_b": "check_b"}}},
    {"best_by_clip": {"use": "best_caption", "of": ["caption_a", "caption_b"], "model": "clip"}},
    "select",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pictures")
    for number in range(24):
        (made / f"{number:03}.jpg").write_bytes(jpeg_bytes(64, 48, number))
        (made / f"{number:03}.txt").write_text(f"a red dog, number {number}")
    return made


def go(folder: Path, out: Path, stages: list[Any], jobs: list[Any] | None = None) -> RunResult:
    given = {
        "name": "checks", "input": {"kind": "image_folder", "folder": str(folder), "rows_per_part": 12},
        "models": {"clip": CLIP, "mllm": {"kind": "fake", "failures": {"refusal": 0.1}}}, "stages": stages, "jobs": jobs or [],
    }  # fmt: skip
    return run(build_recipe(given), out, RunOptions(executor="local", workers=1))


def values(out: Path, stage: str) -> list[dict[str, Any]]:
    files = sorted(file for file in (out / "values" / stage).glob("part-*.parquet") if ".vectors." not in file.name)
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_checks_account_for_every_caption_and_a_threshold_computes_nothing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = go(folder, out, STAGES, ["write_shards", "report"])
    captions, claims, checks, best, by_clip = (values(out, name) for name in ("caption_a", "claims_a", "check_a", "best", "best_by_clip"))
    assert len(captions) == len(checks) == 24 and any(row["text"] is None for row in captions), "the fake model refuses now and then"
    for caption, claim, check, other in zip(captions, claims, checks, values(out, "check_b"), strict=True):
        assert (check["flags"] == ["no_caption"]) == (caption["text"] is None) == (check["trust"] is None)
        if caption["text"] and claim["failure"] is None:
            assert check["n_tokens"] == caption["n_tokens"] and -1 <= check["s_xc"] <= 1
            assert check["s_xt"] is not None and check["s_tc"] is not None and check["confirmed"] == claim["confirmed"]
            assert claim["n_claims"] == len(claim["claims"]) and all((one["yes"] is None) == (one["answer"] is None) for one in claim["claims"])
        assert other["confirmed"] is None
    for row, check, other in zip(best, checks, values(out, "check_b"), strict=True):
        trusts = [one for one in (check["trust"], other["trust"]) if one is not None]
        assert row["score"] == (max(trusts) if trusts else None)
    assert any(row["of"] == "caption_b" for row in by_clip) and any(row["of"] == "caption_a" for row in by_clip)
    assert sum(result.tally.computed.values()) == 24 * 9

    stricter = [*STAGES[:6], {"check_b": {**CHECK, "of": "caption_b", "min_trust": 0.4, "require": ["no_caption"]}}, *STAGES[7:]]
    again = go(folder, out, stricter)
    assert not any(again.tally.computed.values()), "nothing is computed for a stricter decision"
    final = [row for part in range(2) for row in again.view.final(again.view.view(part)).to_pylist()]
    wanted = ["bad_caption" if row["trust"] is None else "low_trust" if row["trust"] < 0.4 else None for row in values(out, "check_b")]
    assert [row["reason"] for row in final] == wanted and {"bad_caption", "low_trust"} & set(wanted)


def test_a_recipe_that_names_no_such_stage_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="caption_c.text"):
        go(folder, tmp_path / "run", [*STAGES[:4], {"check": {**CHECK, "of": "caption_c"}}])
    with pytest.raises(RecipeError, match="image_emb"):
        go(folder, tmp_path / "run", ["read_images", STAGES[2], {"check": {**CHECK, "of": "caption_a"}}])
