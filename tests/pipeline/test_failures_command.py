"""`pairmill failures`: counts that agree with the verdicts, example rows, hints, and a thousand parts."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner, Result

from pipeline import store as store_module
from pipeline.advice import advice_for
from pipeline.cli import app
from pipeline.failures import failures_of
from pipeline.run import RunOptions, open_run, run
from pipeline.store import VALUES, VERDICTS, Store
from schemas.outcome import FailureCode, Status
from schemas.record import PartRecord
from tests.pipeline.helpers import make_recipe

TOYS = ["--import", str(Path(__file__).with_name("toys.py"))]
BOOK = {"u5": "timeout", "u6": "timeout", "u40": "timeout", "u90": "dns", "u33": "http_4xx"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "book.json").write_text(json.dumps(BOOK))
    stages = [{"score": {"min": 100}}, {"flaky": {"book": str(tmp_path / "book.json")}}]
    run(make_recipe(stages, rows=200, rows_per_part=40), tmp_path / "run", RunOptions(executor="local"))
    return tmp_path / "run"


def pairmill(*arguments: str | Path, columns: int = 80) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": str(columns), "NO_COLOR": "1"})


def test_counts_and_examples_are_those_of_the_verdicts(out: Path) -> None:
    found = failures_of(out, examples=2, dropped=True)
    view = open_run(out)
    truth: Counter[tuple] = Counter()
    details: dict[str, str] = {}
    for part in range(len(view.parts)):
        ids = view.view(part).column(view.chain.find_column("sample_id")).to_pylist()
        for identifier, row in zip(ids, view.final(view.view(part)).to_pylist(), strict=True):
            if row["status"] != Status.KEPT:
                truth[(row["stage"], Status(row["status"]).name.lower(), row["reason"])] += 1
                details[identifier.hex()] = row["detail"]
    assert {(group["stage"], group["kind"], group["reason"]): group["rows"] for group in found["groups"]} == truth
    for group in found["groups"]:
        assert group["share"] == group["rows"] / 200
        assert len(group["examples"]) == min(2, group["rows"])
        assert all(details[example["sample_id"]] == example["detail"] for example in group["examples"])
    timeouts = next(group for group in found["groups"] if group["reason"] == "timeout")
    assert timeouts["passing"] and [example["url"] for example in timeouts["examples"]] == ["u5", "u6"]


def test_the_answer_and_its_commands(out: Path) -> None:
    told = pairmill("failures", out, *TOYS)
    assert told.exit_code == 0 and told.stderr == ""
    assert "below_cut" not in told.stdout and "bad_row" in told.stdout
    assert "failed for a reason that may pass" in told.stdout and "recorded" in told.stdout
    commands = [line.strip() for line in told.stdout.splitlines() if line.startswith("  pairmill ")]
    assert [shlex.split(command)[1] for command in commands] == ["retry", "retry", "explain"]
    for command in commands:  # what is advised works as it stands
        dry = ["--dry-run"] if " retry " in command else []
        assert pairmill(*shlex.split(command)[1:], *TOYS, *dry).exit_code == 0


@pytest.mark.parametrize("columns", [60, 160])
def test_narrow_and_wide(out: Path, columns: int) -> None:
    lines = pairmill("failures", out, *TOYS, "--dropped", columns=columns).stdout.splitlines()
    folded = [line for line in lines if not line.startswith("  pairmill ")]  # a command is never cut, so that it can be copied
    assert max(map(len, folded)) <= columns
    assert {code for code in (*BOOK.values(), "below_cut") if not any(code in line for line in lines)} == set()


def test_selection(out: Path) -> None:
    def reasons(*options: str) -> set[str]:
        return {group["reason"] for group in json.loads(pairmill("failures", out, *TOYS, "--json", *options).stdout)["groups"]}

    assert reasons() == {"bad_row", "timeout", "dns", "http_4xx"}
    assert reasons("--stage", "flaky", "--reason", "passing") == {"timeout", "dns"}
    assert reasons("--reason", "dns,below_cut") == {"dns", "below_cut"}
    assert reasons("--stage", "score") == set()
    assert "--dropped" in pairmill("failures", out, *TOYS, "--stage", "score").stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--stage", "flak"], "did you mean 'flaky'?"), (["--reason", "time_out"], "did you mean 'timeout'?"), (["--examples", "-1"], "--examples")],
)
def test_mistakes(out: Path, options: list[str], words: str) -> None:
    result = pairmill("failures", out, *TOYS, *options)
    assert result.exit_code == 2 and words in result.stderr and result.stdout == ""


def test_a_run_that_stopped(out: Path, tmp_path: Path) -> None:
    for part in (3, 4):
        (out / "verdicts" / "flaky" / f"part-{part:05d}.parquet").unlink()
    told = pairmill("failures", out, *TOYS)
    assert "3 of 5 parts" in told.stdout and "timeout" in told.stdout


def test_a_thousand_parts_are_read_by_their_footers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns are read only of the parts that give the examples: one file of verdicts and one of the source for each."""
    parts = 1000
    result = run(make_recipe(["flaky"], rows=1), tmp_path / "run", RunOptions(executor="local"))
    store, node = Store(tmp_path / "run"), result.view.chain.node("flaky")
    known = store.read_run()
    source, footer = store.read(VALUES, "source", 0), store.record(VALUES, "source", 0)
    assert known is not None and source is not None and footer is not None
    known.parts = [1] * parts
    store.write_run(known)
    for part in (2, 4):
        store.commit(source, replace(footer, part=part))
    for part in range(0, parts, 2):
        record = PartRecord(VERDICTS, "flaky", part, 1, node.decide_fingerprint, counts={"failed": 1, "failed:dns": 1})
        table = {"status": np.full(1, Status.FAILED, np.int8), "reason": ["dns"], "detail": ["no such name"], "open": [False]}
        store.commit(pa.table(table), record)
    read: list[tuple] = []
    plain = store_module.Store.read
    monkeypatch.setattr(store_module.Store, "read", lambda self, *what: read.append(what[:3]) or plain(self, *what))
    found = failures_of(tmp_path / "run", stage="flaky", examples=3)
    assert [(group["reason"], group["rows"]) for group in found["groups"]] == [("dns", 500)]
    assert [example["part"] for example in found["groups"][0]["examples"]] == [0, 2, 4]
    assert len(read) == 6


def test_failed_rows_that_a_stage_keeps(tmp_path: Path) -> None:
    plugin = tmp_path / "keeps.py"
    plugin.write_text(
        "import pyarrow as pa\nfrom pipeline.stage import Stage\nfrom schemas.outcome import Failure\n\n\nclass Keeps(Stage):\n    name = 'keeps'\n"
        "    reads = ('url',)\n    writes = {'n': pa.int64()}\n    on_failure = 'keep'\n\n    def compute(self, rows, ctx):\n"
        "        return [Failure('refusal', 'no') if row['url'] == 'u7' else {'n': 1} for row in rows]\n"
    )
    recipe = tmp_path / "keeps.yaml"
    recipe.write_text(yaml.safe_dump({"name": "keeps", "input": {"kind": "numbers", "rows": 20, "rows_per_part": 20}, "stages": ["keeps"]}))
    imports = [*TOYS, "--import", str(plugin)]
    assert pairmill("run", recipe, *imports, "--out", tmp_path / "run").exit_code == 0
    (group,) = json.loads(pairmill("failures", tmp_path / "run", *imports, "--json").stdout)["groups"]
    assert (group["kind"], group["reason"], group["rows"], group["examples"][0]["url"]) == ("null", "refusal", 1, "u7")


@pytest.mark.parametrize("code", FailureCode)
def test_every_code_has_an_advice_of_its_own(code: str) -> None:
    """That of a plug-in's code sends to this command, which would lead in a circle here."""
    assert advice_for(code) != advice_for("a code of a plug-in") and not advice_for(code).endswith(".")
