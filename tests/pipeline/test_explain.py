"""explain: a row's life is what the run stored about it."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from pipeline import registry
from pipeline.errors import RecipeError
from pipeline.explain import explain, print_life
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run
from schemas.sample import sample_id

PLUGIN = '''
import numpy as np
import pyarrow as pa
from pipeline.stage import Stage, Vector
from schemas.outcome import Failure


class Embed(Stage):
    """A vector per row; a caption that fails for odd values and is kept then."""

    name = "embed_value"
    reads = ("value",)
    writes = {"emb": Vector("float16"), "digest": pa.binary(4)}
    on_failure = "keep"

    def compute(self, rows, ctx):
        return [
            Failure("bad_answer", "odd") if row["value"] % 2 else {"emb": np.full(8, row["value"]), "digest": row["value"].to_bytes(4, "big")}
            for row in rows
        ]
'''
ROWS = 120


def recipe_of(low: int):
    stages = [{"score": {"min": low}}, {"first_url": {}}, {"embed_value": {}}, {"flaky": {}}]
    return build_recipe({"name": "toy", "input": {"kind": "numbers", "rows": ROWS, "rows_per_part": 50}, "stages": stages})


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    (folder / "embed.py").write_text(PLUGIN)
    registry.import_file(str(Path(__file__).parent / "toys.py"))
    registry.import_file(str(folder / "embed.py"))
    run(recipe_of(0), folder / "run", RunOptions(executor="local"))
    run(recipe_of(100), folder / "run", RunOptions(executor="local"))  # rows under 100 keep values of the looser run below
    return folder / "run"


def identifier(row: int) -> str:
    url = row - 1 if row % 17 == 0 and row else row
    return sample_id("numbers", f"u{url}", f"text {row}").hex()


def stage_of(life: dict, name: str) -> dict:
    return next(stage for stage in life["stages"] if stage["stage"] == name)


def value_of(row: int) -> int:
    return (row * 7919) % 1000


def test_a_kept_row_has_all_its_values(out):
    row = next(i for i in range(60, ROWS) if value_of(i) * 3 % 1000 >= 100 and value_of(i) % 2 == 0 and i % 17 > 1)
    (life,) = explain(out, identifier(row))
    assert (life["part"], life["row"], life["became"]) == (row // 50, row % 50, "kept")
    assert life["source"]["url"] == f"u{row}" and life["source"]["value"] == value_of(row)
    assert stage_of(life, "score")["values"] == {"score": value_of(row) * 3 % 1000}
    assert stage_of(life, "embed_value")["values"] == {"emb": "float16[8]", "digest": value_of(row).to_bytes(4, "big").hex()}
    assert stage_of(life, "first_url")["resolved"]["keeper"] == identifier(row)


def test_a_prefix_and_a_url_find_the_same_row(out):
    whole = explain(out, identifier(3))
    assert explain(out, identifier(3)[:7]) == whole == explain(out, identifier(3).upper()[:6]) == explain(out, "u3")


def test_dropped_row_names_stage_reason_and_older_values(out):
    row = next(i for i in range(ROWS) if value_of(i) * 3 % 1000 < 100 and i % 17 > 1)
    (life,) = explain(out, identifier(row))
    assert life["became"].startswith("dropped at score: below_cut (") and life["became"].endswith("< 100)")
    flaky = stage_of(life, "flaky")
    assert flaky["verdict"] == "skipped" and "earlier, looser run" in flaky["note"]


def test_failed_and_kept_is_told(out):
    row = next(i for i in range(ROWS) if value_of(i) * 3 % 1000 >= 100 and value_of(i) % 2 and i % 17 > 1)
    (life,) = explain(out, identifier(row))
    embed = stage_of(life, "embed_value")
    assert (embed["verdict"], embed["outcome"], embed["failure"], embed["failure_detail"]) == ("kept", "failed", "bad_answer", "odd")


def test_rows_that_share_a_url(out):
    first, second = explain(out, "u33")
    assert second["sample_id"] == identifier(34)
    assert first["same_url"] == [{"sample_id": identifier(34), "part": 0, "row": 34}]


def test_source_failure(out):
    (life,) = explain(out, identifier(96))
    assert life["became"] == "failed at source: bad_row (planted)"


def test_place_in_the_dataset(out):
    import pyarrow.parquet as pq

    folder = out / "dataset" / "shards"
    folder.mkdir(parents=True)
    index = {"key": [identifier(2), identifier(3)], "tar": ["a.tar", "b.tar"], "offset": [512, 1024], "size": [7, 9]}
    pq.write_table(pa.table(index), folder / "train-00000.parquet")
    (life,) = explain(out, identifier(3))
    assert life["dataset"] == [{"file": "dataset/shards/train-00000.parquet", "key": identifier(3), "tar": "b.tar", "offset": 1024, "size": 9}]


def test_printed_life_has_all_parts(out):
    screen = io.StringIO()
    for life in explain(out, "u33"):
        print_life(life, Console(file=screen, width=80))
    text = screen.getvalue()
    assert identifier(33) in text and "dropped: same_url" in text and "(resolved)" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_what_is_not_there(out):
    with pytest.raises(RecipeError, match="no row of"):
        explain(out, "0" * 32)
    with pytest.raises(RecipeError, match="at least 6 digits"):
        explain(out, "0a")
