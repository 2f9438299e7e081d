"""What the manifest says of the images: decoded whole by some stage that every row of a shard has passed, or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.chain import Chain
from pipeline.recipe import build_recipe
from pipeline.run_view import RunView
from pipeline.store import Store
from stages.shards.manifest import images_checked


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (["download"], "decoded"), ([{"download": {"check": "header"}}], "header"),
        ([{"download": {"check": "header"}}, "exact_dup"], "header"),
        ([{"download": {"check": "header"}}, {"clip_score": {"model": "clip"}}], "decoded"),
    ],
)  # fmt: skip
def test_images_are_called_decoded_when_each_was(tmp_path: Path, stages: list, expected: str) -> None:
    table = tmp_path / "urls.csv"
    table.write_text("url,alt_text\nhttp://a.example/1.jpg,a cat\n")
    recipe = build_recipe(
        {
            "name": "some", "input": {"kind": "url_table", "table": str(table)}, "stages": stages,
            "models": {"clip": {"kind": "open_clip", "name": "ViT-B-32", "weights": "random"}},
        }
    )  # fmt: skip
    assert images_checked(RunView(Chain(recipe), Store(tmp_path / "run"), [1]), "download") == expected
