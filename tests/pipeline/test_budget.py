"""The circuit breaker: when it stops, before which commit, what it says, and which parts an outage had reached."""

from __future__ import annotations

import importlib.util
import json
import pickle
from pathlib import Path

import pytest

from pipeline import registry
from pipeline.budget import Breaker, BudgetWindow
from pipeline.chain import Chain
from pipeline.errors import Budget, BudgetExceeded
from pipeline.retry import failures_of_outages
from pipeline.run import RunOptions, open_run, run
from pipeline.store import VALUES, Store
from schemas.outcome import Failure, FailureCode
from schemas.record import PartRecord
from tests.pipeline.helpers import calls, make_recipe

LOCAL = RunOptions(executor="local")


def book_of(tmp_path: Path, failing: dict[int, str]) -> str:
    (tmp_path / "book.json").write_text(json.dumps({f"u{row}": code for row, code in failing.items()}))
    return str(tmp_path / "book.json")


def committed(out: Path) -> list[int]:
    return sorted(int(path.name[5:10]) for path in (out / "values" / "flaky").glob("part-*.parquet"))


def test_the_share_over_parts_stops_the_run_before_the_commit(tmp_path: Path) -> None:
    """Parts of 20 rows are too small to be judged alone; the window over them trips within part 4, which is not committed."""
    book = book_of(tmp_path, {row: "timeout" for row in range(40, 600)})
    budgets = {"flaky": {"window": 100, "min_rows": 50, "max_share": 0.5}}
    with pytest.raises(BudgetExceeded, match=r"flaky: 5\d% of the first \d\d rows failed, all timeout"):
        run(make_recipe([{"flaky": {"book": book}}], rows=600, rows_per_part=20, budgets=budgets), tmp_path / "run", LOCAL)
    assert committed(tmp_path / "run") == [0, 1, 2, 3]


def test_a_stage_that_takes_the_whole_part_is_stopped_in_the_middle(tmp_path: Path) -> None:
    plugin = tmp_path / "whole.py"
    plugin.write_text(
        "import pyarrow as pa\nfrom pathlib import Path\nfrom pipeline.stage import Params, Stage, tunes\nfrom schemas.outcome import Failure\n\n\n"
        "class Whole(Stage):\n    name = 'whole'\n    reads = ('url',)\n    writes = {'n': pa.int64()}\n    batch_size = None\n\n"
        "    class Params(Params):\n        log: str = tunes('', 'file')\n\n    def compute(self, rows, ctx):\n        answers = []\n"
        "        for place, row in enumerate(rows):\n            answers.append(Failure('dns', 'no such name'))\n"
        "            Path(self.params.log).write_text(str(place + 1))\n            ctx.report(place, answers[-1])\n        return answers\n"
    )
    registry.import_file(str(plugin))
    with pytest.raises(BudgetExceeded, match="all dns"):
        run(make_recipe([{"whole": {"log": str(tmp_path / "log")}}], rows=3000, rows_per_part=3000), tmp_path / "run", LOCAL)
    assert (tmp_path / "log").read_text() == "200"  # Budget.min_rows


def test_rows_that_are_retried_and_fail_alike_break_no_budget(tmp_path: Path) -> None:
    """300 rows that are really gone may be tried again; were they to fail in another way, the run would stop."""
    book = book_of(tmp_path, {row: "dns" for row in range(600) if row % 2})
    recipe = make_recipe([{"flaky": {"book": book}}], rows=600, rows_per_part=300)
    run(recipe, tmp_path / "run", LOCAL)
    retry = RunOptions(executor="local", retry={"flaky": frozenset({"dns"})})
    assert run(recipe, tmp_path / "run", retry).tally.computed["flaky"] > 200
    book_of(tmp_path, {row: "connect" for row in range(600)})
    with pytest.raises(BudgetExceeded, match="all connect"):
        run(recipe, tmp_path / "run", retry)


def test_every_code_has_its_advice() -> None:
    for code in FailureCode:
        window = BudgetWindow("download", Budget(min_rows=10, window=50))
        with pytest.raises(BudgetExceeded) as stopped:
            for _ in range(10):
                window.add(code, "the detail")
                window.check()
        text = str(stopped.value)
        assert text.startswith(f"download: 100% of the first 10 rows failed, all {code} (such as: the detail): ") and len(text.split("): ")[1]) > 10
        assert stopped.value.code == code
        copy = pickle.loads(pickle.dumps(stopped.value))  # as it travels from a worker
        assert (str(copy), copy.stage, copy.code) == (text, "download", code)


def test_window_forgets_and_names_the_codes() -> None:
    window = BudgetWindow("download", Budget(window=100, min_rows=10, max_share=0.6))
    window.add("", rows=500)
    for code, rows in (("http_4xx", 30), ("timeout", 20)):
        window.add(code, "status 403", rows=rows)
    window.check()
    assert window.share == 0.5
    window.add("http_4xx", "status 403 Forbidden", rows=20)
    with pytest.raises(BudgetExceeded, match=r"70% of the last 100 rows failed, 71% of them http_4xx, 29% of them timeout .*403 Forbidden.*user agent"):
        window.check()


def test_failures_alike_in_a_row() -> None:
    breaker = Breaker("s", Budget(max_identical=30, max_share=1.0), [], {})
    for row in range(29):
        breaker.count(row, Failure("stage_error", "ValueError: x"))
    breaker.count(29, None)
    for row in range(30, 59):
        breaker.count(row, Failure("stage_error", f"ValueError: {row}"))
    with pytest.raises(BudgetExceeded, match="30 rows in a row failed alike, with stage_error .ValueError: x"):
        for row in range(60, 90):
            breaker.count(row, Failure("stage_error", "ValueError: x"))


def test_which_parts_an_outage_reached(tmp_path: Path) -> None:
    """Footers by hand: commits one second apart, 100 rows each; the share rose within part 5, with 250 rows of earlier parts in the window."""
    recipe = make_recipe(["flaky"], rows=1000, rows_per_part=100)
    chain, store = Chain(recipe), Store(tmp_path / "run")
    result = run(recipe, tmp_path / "run", LOCAL)

    def put(part: int, **info: float | bool) -> None:
        record = store.record(VALUES, "flaky", part)
        table = store.read(VALUES, "flaky", part)
        assert record is not None and table is not None
        counts = {"value": 90, "failed": 10, "failed:timeout": 6, "failed:http_4xx": 4}
        store.commit(table, PartRecord(VALUES, "flaky", part, 100, record.fingerprint, digest=record.digest, counts=counts, info={"computed": 100, **info}))

    def found(stops: list | None = None) -> list[int]:
        return sorted(part for _, part in failures_of_outages(chain, store, result.view.parts, stops or []).parts)

    order = [0, 1, 2, 8, 4, 5, 6, 7, 3, 9]  # the order of commits is not that of the parts
    for second, part in enumerate(order):
        put(part, began=1000 + second, at=1000.9 + second)
    assert found() == []
    put(5, began=1005, at=1005.9, rose=250)
    assert found() == [2, 4, 5, 8]
    put(2, began=1002, at=1002.9, retried=True)
    assert found() == [4, 5, 8]
    stop = {"stage": "flaky", "began": 1010.0, "at": 1011.0, "reach": 101}
    assert found([stop]) == [3, 4, 5, 8, 9]
    assert found([{**stop, "stage": "other"}]) == [4, 5, 8]
    beside = {"stage": "flaky", "began": 1009.5, "at": 1011.0, "reach": 0}  # part 9 was committed after the part that stopped the run began
    assert found([beside]) == [4, 5, 8, 9]


def test_a_retry_of_an_outage_that_is_killed_goes_on(tmp_path: Path) -> None:
    """What was retried keeps the marks by which the parts beside it are found."""
    log = tmp_path / "calls"
    book = book_of(tmp_path, {row: "timeout" for row in range(150, 450) if row % 10})
    budgets = {"flaky": {"window": 200, "min_rows": 50}}
    recipe = make_recipe([{"flaky": {"book": book, "calls": str(log)}}], rows=600, rows_per_part=100, budgets=budgets)
    run(recipe, tmp_path / "run", LOCAL)
    record = open_run(tmp_path / "run").store.read_run()
    assert record is not None

    def left() -> int:
        view = open_run(tmp_path / "run")
        return len(failures_of_outages(view.chain, view.store, view.parts, record.stops).parts)

    before = left()
    assert before >= 4
    calls(log)
    book_of(tmp_path, {})

    class Killed(BaseException):
        pass

    def kill(kind: str, what: object) -> None:
        if kind == "done":
            raise Killed

    with pytest.raises(Killed):
        run(recipe, tmp_path / "run", LOCAL, kill)
    assert left() == before - 1
    result = run(recipe, tmp_path / "run", LOCAL)
    assert left() == 0 and max(calls(log).values()) == 1
    assert result.view.state_digest() == run(recipe, tmp_path / "fresh", LOCAL).view.state_digest()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_on_ray_the_stop_is_noted_and_the_next_run_mends_it(tmp_path: Path) -> None:
    book = book_of(tmp_path, {row: "timeout" for row in range(150, 600)})
    budgets = {"flaky": {"window": 200, "min_rows": 50}}
    recipe = make_recipe([{"flaky": {"book": book}}], rows=600, rows_per_part=50, budgets=budgets)
    with pytest.raises(BudgetExceeded, match="all timeout"):
        run(recipe, tmp_path / "run", RunOptions(executor="ray", workers=2))
    record = Store(tmp_path / "run").read_run()
    assert record is not None and [stop["stage"] for stop in record.stops] == ["flaky"]
    made = [part for number in range(12) if (part := Store(tmp_path / "run").record(VALUES, "flaky", number)) is not None]
    assert all(part.info["began"] <= record.stops[0]["at"] for part in made), "tasks on their way at the stop, such as parts of 49 rows, belong to it"
    book_of(tmp_path, {})
    result = run(recipe, tmp_path / "run", LOCAL)
    assert result.view.state_digest() == run(recipe, tmp_path / "fresh", LOCAL).view.state_digest()
