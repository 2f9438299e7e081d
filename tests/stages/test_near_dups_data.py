"""The labelled pairs of near duplicates: nothing that is different is joined, and every kind of duplicate is found that the options allow."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run
from stages.images.hashes import has_pdq

DATA = Path(os.environ.get("PAIRMILL_TEST_DATA", "")) / "near_dups"
pytestmark = pytest.mark.skipif(not os.environ.get("PAIRMILL_TEST_DATA") or not DATA.is_dir(), reason="PAIRMILL_TEST_DATA has no near_dups")


def components(folder: Path, by: str, hashes: dict) -> dict[str, str | None]:
    """Path of each image -> its component (None: no duplicate), through the whole machine."""
    data = {
        "name": "near",
        "input": {"kind": "image_folder", "folder": str(DATA), "rows_per_part": 10},
        "stages": ["read_images", {"image_hash": hashes}, {"near_dup": {"by": by}}, "dedup"],
    }
    result = run(build_recipe(data), folder / "run", RunOptions(executor="local", jobs=False))
    found: dict[str, str | None] = {}
    for part in range(len(result.view.parts)):
        table = result.view.read(result.view.view(part), ["path", "dup_component"]).to_pylist()
        found |= {row["path"]: row["dup_component"] for row in table}
    return found


@pytest.mark.parametrize("turned", [False, True], ids=["as they are", "turned"])
@pytest.mark.parametrize("by", ["phash", "pdq"])
def test_nothing_different_is_joined_and_what_the_options_allow_is_found(tmp_path: Path, by: str, turned: bool) -> None:
    if by == "pdq" and not has_pdq():
        pytest.skip("pdqhash is not installed")
    pairs = [json.loads(line) for line in (DATA / "pairs.jsonl").read_text().splitlines()]
    found = components(tmp_path, by, {"pdq": by == "pdq", "mirrored": turned, "rotated": turned})
    assert Counter(pair["label"] for pair in pairs) == {"duplicate": 35, "different": 61}
    for pair in pairs:
        joined = found[pair["a"]] is not None and found[pair["a"]] == found[pair["b"]]
        wanted = pair["label"] == "duplicate" and (turned or not pair["kind"].startswith("dihedral"))
        assert joined == wanted, pair
