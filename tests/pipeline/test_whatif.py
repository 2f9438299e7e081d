"""whatif: what it says a changed recipe would keep is what a real run of that recipe keeps; rows that lack a measurement are told, never dropped."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from pipeline.changed import changed_run
from pipeline.cli import app
from pipeline.corpus import Corpus
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, RunResult, run
from pipeline.whatif import KEPT, Found, walk
from pipeline.whatif_report import whatif
from tests.pipeline.helpers import make_recipe
from tests.pipeline.test_random_sequences import TOYS, State
from tests.pipeline.test_recut import late

LOCAL = RunOptions(executor="local", jobs=False)


def real_fates(result: RunResult) -> list[tuple[str, str]]:
    """(stage, reason) of every row of a run, ('', '') where it was kept."""
    found = []
    for part in range(len(result.view.parts)):
        table = result.view.final(result.view.view(part))
        found += [(s or "", r or "") for s, r in zip(table["stage"].to_pylist(), table["reason"].to_pylist(), strict=True)]
    return found


def told_fates(found: Found, names: list[str]) -> list[tuple[str, str]]:
    left, reason = found.then.left.tolist(), found.then.reason.tolist()
    return [("", "") if at == KEPT else (names[at], found.names[code]) for at, code in zip(left, reason, strict=True)]


def both(out: Path, sets: list[str], copy: Path) -> tuple[Found, RunResult]:
    """What is told of a change, and what a run of the changed recipe in a copy of the directory does."""
    changed = changed_run(out, sets)
    found = walk(changed, Corpus(changed.run))
    shutil.copytree(out, copy)
    return found, run(changed.recipe, copy, LOCAL, facts=changed.chain.facts)


@pytest.mark.parametrize("seed", range(4))
def test_told_fates_are_those_of_a_real_run(tmp_path: Path, seed: int) -> None:
    """A late recipe with two resolves and a failing stage: everything is measured, so every row's fate must be told."""
    draw = random.Random(seed)
    state = State(tmp_path, 100, 700, 100, failing={f"text {i}": "timeout" for i in range(0, 120, 11)})
    base = late(state)
    data = {**base.resolved, "stages": [*base.resolved["stages"], {"last": {"use": "select", "top_fraction": {"column": "score", "fraction": 0.5}}}]}
    run(build_recipe(data), tmp_path / "run", LOCAL)
    for nth in range(3):
        cut = draw.choice(["last.where=n_bytes < 500 or score > 300", "last.top_fraction.fraction=0.3", "last.percentile={column: score2.score, min: 20}"])
        sets = [f"score.min={draw.choice([0, 100, 400])}", f"fetch.max_bytes={draw.choice([300, 700, 5000])}", f"score2.min={draw.choice([0, 500])}", cut]
        found, result = both(tmp_path / "run", sets, tmp_path / f"copy{nth}")
        names = [node.name for node in result.view.chain.nodes]
        assert not found.undecided.any() and not found.missing and sum(result.tally.computed.values()) == 0
        assert told_fates(found, names) == real_fates(result)


def test_rows_without_a_measurement_are_undecided(tmp_path: Path) -> None:
    """Early recipe: rows that a looser cut revives were not measured behind it. What needs none of them is told as it will be."""
    stages = [{"score": {"min": 300}}, {"flaky": {"max": 60}}, {"second": {"use": "score", "factor": 7, "min": 100}}]
    first = run(make_recipe(stages), tmp_path / "run", LOCAL)
    found, result = both(tmp_path / "run", ["score.min=100", "second.min=200"], tmp_path / "copy")
    assert [(one.stage, one.low) for one in found.missing][:1] == [("flaky", result.tally.computed["flaky"])]
    second = next(one for one in found.missing if one.stage == "second")
    assert second.low <= result.tally.computed["second"] <= second.high
    fates, told = real_fates(result), told_fates(found, [node.name for node in result.view.chain.nodes])
    undecided = found.undecided
    assert undecided.sum() == result.tally.computed["flaky"] and [told[i] for i in np.flatnonzero(~undecided)] == [fates[i] for i in np.flatnonzero(~undecided)]
    real = np.array([fate == ("", "") for fate in fates])
    assert not (real & ~undecided & ~found.kept_then).any() and (real & undecided).any()
    answer = whatif(changed_run(tmp_path / "run", ["score.min=100"]), tokens=False)
    assert answer["undecided"] == undecided.sum() and "undecided until they are measured" in answer["estimate"]
    assert answer["measure"][0]["rows"] == [result.tally.computed["flaky"]] * 2 and answer["measure"][0]["seconds"] >= 0
    assert answer["kept"]["now"] == first.view.counts()["second"]["kept"] == answer["kept"]["then"]  # the undecided count on neither side


def test_another_compute_parameter_leaves_nothing_decided_behind_it(tmp_path: Path) -> None:
    run(make_recipe([{"score": {"min": 300}}, {"flaky": {}}]), tmp_path / "run", LOCAL)
    answer = whatif(changed_run(tmp_path / "run", ["score.factor=9"]), tokens=False)
    assert answer["measure"][0]["stage"] == "score" and answer["measure"][0]["rows"] == [answer["undecided"]] * 2
    assert answer["kept"]["then"] == 0 and answer["undecided"] > 500


def pairmill(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80", "NO_COLOR": "1"})


def test_the_command_tells_and_writes_only_its_cache(tmp_path: Path) -> None:
    run(make_recipe([{"score": {"min": 300, "factor": 7}}, "first_url"]), tmp_path / "run", LOCAL)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    arguments = ("whatif", str(tmp_path / "run"), "--set", "score.min=500", "--import", str(TOYS), "--no-tokens")
    answer = json.loads(pairmill(*arguments, "--json").stdout)
    kept = answer["kept"]
    assert kept["both"] + kept["only_now"] == kept["now"] and kept["both"] + kept["only_then"] == kept["then"] and kept["only_then"] > 0
    assert answer["changes"] == ["score.min 300 -> 500"] and answer["resolved_again"] == ["first_url"]
    assert answer["texts"]["then"]["words"] == 2 * kept["then"]
    shown = [example for example in answer["examples"] if example["stage"] == "score"]
    sides = [(one["side"], int(one["value"].split()[-1 if one["side"] == "kept" else 0])) for one in shown]
    assert [side for side, _ in sides] == ["kept"] * 3 + ["dropped"] * 3
    assert all(500 <= value < 520 for side, value in sides if side == "kept") and all(480 < value < 500 for side, value in sides if side == "dropped")
    reasons = {(entry["stage"], entry["reason"]): (entry["now"], entry["then"]) for entry in answer["stages"]}
    assert reasons["source", "bad_row"] == (6, 6) and reasons["score", "below_cut"][0] < reasons["score", "below_cut"][1]
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file() and "whatif" not in path.parts}
    assert after == before
    again = json.loads(pairmill(*arguments, "--json").stdout)
    assert again.pop("cache")["files_made"] == 0 < answer.pop("cache")["files_made"] and again == answer
    text = pairmill(*arguments)
    assert text.exit_code == 0 and max(map(len, text.stdout.splitlines())) <= 80 and "score.min 300 -> 500" in text.stdout
    assert f"kept in both {kept['both']:,}" in " ".join(text.stdout.split()) and "at the boundary of score" in text.stdout


def test_a_changed_run_is_read_anew_and_an_unfinished_one_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(make_recipe([{"score": {"min": 300}}]), out, LOCAL)
    first = whatif(changed_run(out, ["score.min=500"]), tokens=False)
    run(make_recipe([{"score": {"min": 200}}]), out, LOCAL)
    second = whatif(changed_run(out, ["score.min=500"]), tokens=False)
    assert second["kept"]["then"] == first["kept"]["then"] and second["kept"]["now"] > first["kept"]["now"]
    (out / "verdicts" / "score" / "part-00002.parquet").unlink()
    told = pairmill("whatif", str(out), "--set", "score.min=500", "--import", str(TOYS))
    assert told.exit_code == 2 and "finish it with `pairmill run`" in " ".join(told.stderr.split())


def test_the_command_leaves_pandas_alone_and_others_may_still_use_it() -> None:
    pytest.importorskip("pandas")
    script = """
import sys
from pipeline.cli_whatif import _leave_pandas
_leave_pandas()
import numpy as np, pyarrow as pa
pa.array(np.arange(3)), pa.array([1, None]), pa.table({"x": np.arange(3)})
assert "pandas" not in sys.modules
import pandas
assert pa.table({"x": [1]}).to_pandas().x.tolist() == [1] and pa.array(pandas.Series([1, 2])).to_pylist() == [1, 2]
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
