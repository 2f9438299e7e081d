"""The labelled pairs of near duplicates: nothing that is different is joined, and every kind of duplicate is found that the options allow."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run
from stages.images.hashes import has_pdq

DATA = Path(os.environ.get("PAIRMILL_TEST_DATA", "")) / "near_dups"
pytestmark = pytest.mark.skipif(not os.environ.get("PAIRMILL_TEST_DATA") or not DATA.is_dir(), reason="PAIRMILL_TEST_DATA has no near_dups")


TOGETHER = [  # the rule of docs/near_duplicates.md for cropped, framed and written-on copies
    {"clip_score": {"model": "clip", "min": None}}, {"near_dup": {"by": "pdq", "search_distance": 80, "min_quality": 0}},
    {"semantic_dup": {"search_cosine": 0.85}}, "crop_dup", {"dedup": {"max_distance": 24, "semantic_bits": 24, "hash_difference": 20}},
]  # fmt: skip


def components(folder: Path, hashes: dict, search: list, images: Path = DATA) -> dict[str, str | None]:
    """Path of each image -> its component (None: no duplicate), through the whole machine."""
    data = {
        "name": "near",
        "input": {"kind": "image_folder", "folder": str(images), "rows_per_part": 10},
        "models": {"clip": {"kind": "open_clip", "weights": "bundled:rendered_clip"}},
        "stages": ["read_images", {"image_hash": hashes}, *search],
    }
    result = run(build_recipe(data), folder / "run", RunOptions(executor="local", jobs=False))
    found: dict[str, str | None] = {}
    for part in range(len(result.view.parts)):
        table = result.view.read(result.view.view(part), ["path", "dup_component"]).to_pylist()
        found |= {row["path"]: row["dup_component"] for row in table}
    return found


def labelled() -> list[dict]:
    return [json.loads(line) for line in (DATA / "pairs.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("turned", [False, True], ids=["as they are", "turned"])
@pytest.mark.parametrize("by", ["phash", "pdq"])
def test_nothing_different_is_joined_and_what_the_options_allow_is_found(tmp_path: Path, by: str, turned: bool) -> None:
    if by == "pdq" and not has_pdq():
        pytest.skip("pdqhash is not installed")
    pairs = labelled()
    found = components(tmp_path, {"pdq": by == "pdq", "mirrored": turned, "rotated": turned}, [{"near_dup": {"by": by}}, "dedup"])
    assert Counter(pair["label"] for pair in pairs) == {"duplicate": 35, "different": 61}
    for pair in pairs:
        joined = found[pair["a"]] is not None and found[pair["a"]] == found[pair["b"]]
        wanted = pair["label"] == "duplicate" and (turned or not pair["kind"].startswith("dihedral"))
        assert joined == wanted, pair


@pytest.mark.skipif(not has_pdq(), reason="pdqhash is not installed")
def test_hashes_embeddings_and_thumbnails_together_join_nothing_different_and_find_all_that_is_not_turned(tmp_path: Path) -> None:
    shutil.copytree(DATA, tmp_path / "images")
    for path in [path for path in (tmp_path / "images").rglob("*.*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")]:
        path.with_suffix(".txt").write_text("a picture")  # clip_score drops rows without a text
    found = components(tmp_path, {"trimmed": True, "thumbnail": True}, TOGETHER, tmp_path / "images")
    for pair in labelled():
        joined = found[pair["a"]] is not None and found[pair["a"]] == found[pair["b"]]
        assert joined == (pair["label"] == "duplicate" and not pair["kind"].startswith("dihedral")), pair
