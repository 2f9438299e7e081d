"""Progress: the counts it shows are the run's, lines and JSON keep to their stream, tables fit the terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import registry
from pipeline.progress import Progress
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, RunResult, run

STAGES = [{"score": {"min": 100}}, {"first_url": {}}, {"flaky": {}}, {"score2": {"use": "score", "factor": 5, "min": 200}}]


def run_with(progress: Progress, out: Path, low: int = 100) -> RunResult:
    registry.import_file(str(Path(__file__).parent / "toys.py"))
    stages = [{"score": {"min": low}}, *STAGES[1:]]
    recipe = build_recipe({"name": "toy", "input": {"kind": "numbers", "rows": 300, "rows_per_part": 100}, "stages": stages})
    with progress:
        return run(recipe, out, RunOptions(executor="local"), progress)


def check_counts(progress: Progress, result: RunResult) -> None:
    counts = result.view.counts()
    for name, stage in progress.stages.items():
        assert (stage.parts, stage.total) == (3, 3), name
        assert stage.rows == {key: counts[name][key] for key in ("kept", "dropped", "failed")}, name
        assert stage.computed == result.tally.computed.get(name, 0), name


def test_counts_equal_those_of_the_run_also_where_parts_are_skipped(tmp_path):
    for low in (100, 100, 50):  # a new run, one with nothing to do, one that computes revived rows
        progress = Progress("lines", stream=io.StringIO())
        check_counts(progress, run_with(progress, tmp_path / "run", low))


def test_no_terminal_takes_lines_and_reports_at_intervals(tmp_path):
    stream = io.StringIO()
    progress = Progress("auto", interval=0.02, stream=stream)
    assert progress.mode == "lines"
    run_with(progress, tmp_path / "run")
    lines = stream.getvalue().splitlines()
    assert all(line.startswith("[0:") for line in lines)
    assert sum("barrier first_url: passed" in line for line in lines) == 1
    assert any("score" in line and "kept" in line for line in lines), lines


def test_json_lines(tmp_path):
    stream = io.StringIO()
    progress = Progress("json", stream=stream)
    result = run_with(progress, tmp_path / "run")
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert {"input", "schedule", "executor", "resolve", "resolved", "done", "verdict"} <= {event["event"] for event in events}
    computed = sum(event["computed"] for event in events if event["event"] == "done" and event["stage"] == "flaky")
    assert computed == result.tally.computed["flaky"]
    kept = sum(event["kept"] for event in events if event["event"] == "verdict" and event["stage"] == "score2")
    assert kept == result.view.counts()["score2"]["kept"]


@pytest.mark.parametrize("width", [40, 60, 80, 160])
def test_the_table_fits_the_terminal(tmp_path, width):
    progress = Progress("lines", stream=io.StringIO())
    run_with(progress, tmp_path / "run")
    progress.stages["score"].rows["kept"] = 123_456_789
    screen = io.StringIO()
    Console(file=screen, width=width).print(progress._table(width, 24))
    lines = screen.getvalue().rstrip("\n").split("\n")
    assert max(len(line.rstrip()) for line in lines) <= width
    text = screen.getvalue()
    assert "score2" in text and "3/3" in text and "123M" in text
    assert ("dropped" in text) == (width >= 56) and ("computed" in text) == (width >= 76)


def test_a_low_terminal_folds_finished_stages(tmp_path):
    progress = Progress("lines", stream=io.StringIO())
    run_with(progress, tmp_path / "run")
    progress.stages["score2"].parts = 1
    screen = io.StringIO()
    Console(file=screen, width=80).print(progress._table(80, 7))
    assert "(1 done)" in screen.getvalue() and "score2" in screen.getvalue()


def test_jobs_are_told(tmp_path):
    stream = io.StringIO()
    progress = Progress("lines", stream=stream)
    for event in (("job", "write_shards"), ("job_task", ("write_shards", 3, 12)), ("job_done", ("write_shards", {}))):
        progress(*event)
        if event[0] == "job_task":
            assert progress.line().startswith("job write_shards: 3 of 12")
    assert "job write_shards: done" in stream.getvalue()
