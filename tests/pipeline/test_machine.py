"""The machine on toy stages: equal state for every way of running, nothing computed twice, no row lost."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline import registry
from pipeline.errors import BudgetExceeded, Fatal, RecipeError
from pipeline.run import RunOptions, open_run, run
from schemas.outcome import Status
from schemas.sample import sample_id
from tests.pipeline.helpers import calls, make_recipe

LOCAL = RunOptions(executor="local")


def chain(score_min: int = 100, second_min: int = 200, log: str | None = None, factor: int = 5, **top):
    last = {"use": "score", "factor": factor, "min": second_min, "calls": log}
    return make_recipe([{"first_url": {}}, {"score": {"min": score_min, "calls": log}}, {"flaky": {"calls": log}}, {"score2": last}], **top)


def statuses(view) -> list[tuple]:
    rows = []
    for part in range(len(view.parts)):
        rows += view.final(view.view(part)).to_pylist()
    return [tuple(row.values()) for row in rows]


def test_every_row_has_exactly_one_outcome(tmp_path: Path) -> None:
    result = run(chain(), tmp_path / "run", LOCAL)
    final = statuses(result.view)
    assert len(final) == 600
    by_status = Counter(row[0] for row in final)
    assert by_status[Status.FAILED] == 6  # the planted bad rows of the source: 96, 193, ... 581
    for status, stage, reason, _ in final:
        assert (stage is None) == (status == Status.KEPT)
        assert (reason is None) == (status == Status.KEPT)
    assert list(result.view.check_counts()) == []


def test_rules_drop_what_they_say(tmp_path: Path) -> None:
    result = run(chain(score_min=100), tmp_path / "run", LOCAL)
    view = result.view
    for part in range(len(view.parts)):
        table = view.read(view.view(part), ["value", "url"])
        verdict = view.view(part).verdict(2)
        for value, status in zip(table["value"].to_pylist(), verdict.status.tolist(), strict=True):
            if status != Status.SKIPPED:
                assert (status == Status.DROPPED) == ((value or 0) * 3 % 1000 < 100)


def test_second_run_does_nothing(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    first = run(chain(log=str(log)), tmp_path / "run", LOCAL)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.parquet")}
    assert calls(log)
    second = run(chain(log=str(log)), tmp_path / "run", LOCAL)
    assert not calls(log)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.parquet")} == before
    assert second.view.state_digest() == first.view.state_digest()


def test_tightening_computes_nothing_and_rewrites_no_values(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    run(chain(score_min=100, log=str(log)), tmp_path / "run", LOCAL)
    calls(log)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "values").rglob("*.parquet")}
    tightened = run(chain(score_min=300, log=str(log)), tmp_path / "run", LOCAL)
    assert not calls(log)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "values").rglob("*.parquet")} == before
    fresh = run(chain(score_min=300), tmp_path / "fresh", LOCAL)
    assert statuses(tightened.view) == statuses(fresh.view)


def test_moving_the_last_threshold_either_way_computes_nothing(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    run(chain(second_min=200, log=str(log)), tmp_path / "run", LOCAL)
    calls(log)
    for minimum in (400, 0, 100):
        moved = run(chain(second_min=minimum, log=str(log)), tmp_path / "run", LOCAL)
        assert not calls(log)
        assert statuses(moved.view) == statuses(run(chain(second_min=minimum), tmp_path / f"fresh{minimum}", LOCAL).view)


def test_loosening_computes_the_revived_rows_and_no_others(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    run(chain(score_min=300, log=str(log)), tmp_path / "run", LOCAL)
    calls(log)
    loosened = run(chain(score_min=100, log=str(log)), tmp_path / "run", LOCAL)
    strict = run(chain(score_min=300), tmp_path / "strict", LOCAL)
    revived = {
        loosened.view.view(part).column(loosened.view.chain.find_column("sample_id"))[int(row)].as_py().hex()
        for part in range(6)
        for row in np.flatnonzero(loosened.view.view(part).verdict(2).alive & ~strict.view.view(part).verdict(2).alive)
    }
    counted = calls(log)
    assert revived
    assert {line.split()[1] for line in counted if line.startswith("flaky ")} == revived
    assert not [line for line in counted if line.startswith("score ")]
    assert set(counted.values()) == {1}
    fresh = run(chain(score_min=100), tmp_path / "fresh", LOCAL)
    assert statuses(loosened.view) == statuses(fresh.view)


def test_late_recipe_equals_the_early_one_and_every_threshold_is_free(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    late = run(chain(score_min=300, log=str(log), decide="late"), tmp_path / "late", LOCAL)
    measured = calls(log)
    assert sum(measured.values()) == 3 * 594  # every row that did not fail at the source, at each of three stages
    assert statuses(late.view) == statuses(run(chain(score_min=300), tmp_path / "early", LOCAL).view)
    for score_min, second_min in ((0, 0), (500, 100), (10, 900)):
        moved = run(chain(score_min, second_min, str(log), decide="late"), tmp_path / "late", LOCAL)
        assert not calls(log)
        assert statuses(moved.view) == statuses(run(chain(score_min, second_min), tmp_path / f"early{score_min}", LOCAL).view)


def test_changed_compute_parameter_recomputes_only_that_stage(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    run(chain(log=str(log)), tmp_path / "run", LOCAL)
    calls(log)
    changed = chain(log=str(log), factor=7)
    run(changed, tmp_path / "run", LOCAL)
    assert {line.split()[0] for line in calls(log)} == {"score2"}


def test_a_keeper_that_dies_upstream_frees_its_duplicate(tmp_path: Path) -> None:
    def recipe(minimum: int):
        return make_recipe([{"score": {"min": minimum}}, {"first_url": {}}, {"score2": {"use": "score", "factor": 1}}])

    run(recipe(0), tmp_path / "run", LOCAL)
    tightened = run(recipe(500), tmp_path / "run", LOCAL)
    fresh = run(recipe(500), tmp_path / "fresh", LOCAL)
    assert tightened.tally.resolves == ["first_url"]
    assert statuses(tightened.view) == statuses(fresh.view)
    # row 16 keeps url u16 in a loose run; at min 500 it is dropped (16 * 7919 * 3 % 1000 = 112) and row 17 takes its place
    assert statuses(fresh.view)[16][1] == "score"


def test_retry_computes_the_matched_failures_only(tmp_path: Path) -> None:
    log, book = tmp_path / "calls", tmp_path / "book.json"
    book.write_text('{"u5": "timeout", "u9": "http_4xx", "u250": "timeout"}')

    def recipe():
        return make_recipe([{"flaky": {"book": str(book), "calls": str(log)}}, {"score": {"calls": str(log)}}])

    run(recipe(), tmp_path / "run", LOCAL)
    calls(log)
    run(recipe(), tmp_path / "run", LOCAL)
    assert not calls(log), "a stored failure is valid until a retry asks"
    book.write_text('{"u9": "http_4xx"}')
    retried = run(recipe(), tmp_path / "run", RunOptions(executor="local", retry={"flaky": frozenset({"timeout"})}))
    counted = calls(log)
    assert sorted(line.split()[0] for line in counted) == ["flaky", "flaky", "score", "score"]
    assert statuses(retried.view) == statuses(run(recipe(), tmp_path / "fresh", LOCAL).view)


@pytest.mark.parametrize("how", ["raise", "hang"])
def test_a_poison_row_costs_one_row(tmp_path: Path, how: str) -> None:
    recipe = make_recipe([{"poison": {"text": "text 30", "how": how}}], rows=64, rows_per_part=64)
    result = run(recipe, tmp_path / "run", LOCAL)
    lost = [(place, row) for place, row in enumerate(statuses(result.view)) if row[0] != Status.KEPT]
    assert len(lost) == 1
    assert lost[0][0] == 30
    assert lost[0][1][1:3] == ("poison", "stage_error" if how == "raise" else "hung")


def test_a_broken_stage_is_fatal_and_commits_nothing(tmp_path: Path) -> None:
    plugin = tmp_path / "bad.py"
    plugin.write_text(
        "import pyarrow as pa\nfrom pipeline.stage import Stage\n"
        "class Short(Stage):\n    name = 'short'\n    reads = ('value',)\n    writes = {'x': pa.int64()}\n"
        "    def compute(self, rows, ctx):\n        return [{'x': 1}]\n"
        "class Wide(Stage):\n    name = 'wide'\n    reads = ('value',)\n    writes = {'x': pa.int64()}\n"
        "    def compute(self, rows, ctx):\n        return [{'x': 1, 'y': 2} for _ in rows]\n"
        "class Typo(Stage):\n    name = 'typo'\n    reads = ('value',)\n    writes = {'x': pa.int64()}\n"
        "    def compute(self, rows, ctx):\n        return [{'x': undefined_name} for _ in rows]\n"
        "class Mixed(Stage):\n    name = 'mixed'\n    reads = ('value',)\n    writes = {'x': pa.int64()}\n"
        "    def compute(self, rows, ctx):\n        return [{'x': 'no number' if row['value'] == 0 else 1} for row in rows]\n"
    )

    registry.import_file(str(plugin))
    for name, words in (("short", "list of 99"), ("wide", "differs in y"), ("typo", "undefined_name")):
        with pytest.raises(Fatal, match=words):
            run(make_recipe([name]), tmp_path / name, LOCAL)
        assert not (tmp_path / name / "values" / name).exists()
    result = run(make_recipe(["mixed"]), tmp_path / "mixed", LOCAL)  # a value of the wrong type is its row's fault
    assert result.view.counts()["mixed"]["failed:stage_error"] == 1


def test_budget_stops_the_run_and_the_next_run_goes_on(tmp_path: Path) -> None:
    book = tmp_path / "book.json"
    book.write_text("{" + ", ".join(f'"u{i}": "dns"' for i in range(200, 600)) + "}")

    def recipe():
        return make_recipe([{"flaky": {"book": str(book)}}], budgets={"flaky": {"max_share": 0.5, "min_rows": 50}})

    with pytest.raises(BudgetExceeded, match="all dns.*resolver"):
        run(recipe(), tmp_path / "run", LOCAL)
    committed = sorted(p.name for p in (tmp_path / "run" / "values" / "flaky").iterdir())
    assert committed == ["part-00000.parquet", "part-00001.parquet"]
    book.write_text("{}")
    result = run(recipe(), tmp_path / "run", LOCAL)
    assert statuses(result.view) == statuses(run(recipe(), tmp_path / "fresh", LOCAL).view)


def test_part_size_changes_no_row(tmp_path: Path) -> None:
    small = run(chain(rows_per_part=50), tmp_path / "small", LOCAL)
    large = run(chain(rows_per_part=300), tmp_path / "large", LOCAL)
    assert statuses(small.view) == statuses(large.view)


def test_limit_and_sample_give_ids_of_the_full_run(tmp_path: Path) -> None:
    def ids(view) -> list[bytes]:
        ref = view.chain.find_column("sample_id")
        return [value for part in range(len(view.parts)) for value in view.view(part).column(ref).to_pylist()]

    full = ids(run(make_recipe(["score"]), tmp_path / "full", LOCAL).view)
    limited = ids(run(make_recipe(["score"], input={"limit": 130}), tmp_path / "limit", LOCAL).view)
    sampled = ids(run(make_recipe(["score"], input={"sample": 0.25}), tmp_path / "sample", LOCAL).view)
    assert limited == full[:130]
    assert set(sampled) < set(full) and 100 < len(sampled) < 200
    assert sampled == ids(run(make_recipe(["score"], input={"sample": 0.25}), tmp_path / "sample2", LOCAL).view)


def test_another_input_is_refused(tmp_path: Path) -> None:
    run(make_recipe(["score"]), tmp_path / "run", LOCAL)
    with pytest.raises(RecipeError, match="another input"):
        run(make_recipe(["score"], rows=601), tmp_path / "run", LOCAL)


def test_open_run_reads_without_the_input(tmp_path: Path) -> None:
    first = run(chain(), tmp_path / "run", LOCAL)
    assert open_run(tmp_path / "run").state_digest() == first.view.state_digest()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.parametrize("workers", [1, 2])
def test_ray_gives_the_bytes_of_the_plain_loop(tmp_path: Path, workers: int) -> None:
    local = run(chain(), tmp_path / "local", LOCAL)
    ray = run(chain(), tmp_path / "ray", RunOptions(executor="ray", workers=workers))
    assert ray.view.state_digest() == local.view.state_digest()
    assert statuses(ray.view) == statuses(local.view)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.parametrize("how", ["kill", "hang"])
def test_a_row_that_kills_or_hangs_its_worker_costs_one_row(tmp_path: Path, how: str) -> None:
    recipe = make_recipe([{"poison": {"text": "text 70", "how": how}}], rows=128, rows_per_part=64)
    result = run(recipe, tmp_path / "run", RunOptions(executor="ray", workers=2))
    lost = [(place, row) for place, row in enumerate(statuses(result.view)) if row[0] != Status.KEPT and row[2] != "bad_row"]
    assert [place for place, _ in lost] == [70]
    assert lost[0][1][1:3] == ("poison", "worker_died" if how == "kill" else "hung")


def test_a_removed_part_of_the_input_is_made_again(tmp_path: Path) -> None:
    first = statuses(run(chain(), tmp_path / "run", LOCAL).view)
    for kind in ("values", "verdicts"):
        (tmp_path / "run" / kind / "source" / "part-00001.parquet").unlink()
        with pytest.raises(Fatal, match="part-00001.parquet is missing"):
            view = open_run(tmp_path / "run")
            view.read(view.view(1), ["url"])
            statuses(view)
        assert statuses(run(chain(), tmp_path / "run", LOCAL).view) == first


def test_decide_that_breaks_names_the_sample(tmp_path: Path) -> None:
    plugin = tmp_path / "breaks.py"
    plugin.write_text(
        "from pipeline.stage import Stage\n"
        "class Breaks(Stage):\n    name = 'breaks'\n    reads_decide = ('value', 'alt_text')\n"
        "    def decide(self, row, resolved):\n        return 1 / (row['alt_text'] != 'text 5') and None\n"
    )
    registry.import_file(str(plugin))
    sample = sample_id("numbers", "u5", "text 5").hex()
    with pytest.raises(Fatal, match=f"sample {sample} .part 0, row 5.: ZeroDivisionError"):
        run(make_recipe(["breaks"]), tmp_path / "run", LOCAL)
