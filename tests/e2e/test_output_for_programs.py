"""Output for programs and for other terminals: --json of every command that reads, JSON lines of progress, NO_COLOR, 80 columns, shell completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TOYS = REPOSITORY / "tests" / "stages" / "report" / "toys.py"
RECIPE = "name: toy\ninput: {kind: given_rows, file: rows.json}\nstages: [paint, grade: {min: 0.3}]\njobs: [write_shards: {}]\n"


def pairmill(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**{key: value for key, value in os.environ.items() if key != "NO_COLOR"}, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "80", **environment}
    return subprocess.run([sys.executable, "-m", "pipeline.cli", *arguments], cwd=folder, env=variables, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished run of 30 rows in `run`; its progress, as JSON lines, in `progress`."""
    made = tmp_path_factory.mktemp("programs")
    rows = [{"url": f"https://web.example/{i}{'/gone' if i % 10 == 9 else ''}", "alt_text": f"thing number {i}", "score": i / 30} for i in range(30)]
    (made / "rows.json").write_text(json.dumps(rows))
    (made / "toy.yaml").write_text(RECIPE)
    told = pairmill(made, "run", "toy.yaml", "--import", str(TOYS), "--out", "run", "--executor", "local", "--progress", "json", "--json")
    assert told.returncode == 0, told.stderr
    (made / "progress").write_text(told.stderr)
    (made / "summary").write_text(told.stdout)
    return made


READING = {
    "plan": ["plan", "toy.yaml", "--out", "run"],
    "status": ["status", "run"],
    "explain": ["explain", "run", "https://web.example/3"],
    "failures": ["failures", "run", "--dropped"],
    "retry": ["retry", "run", "--dry-run", "--reason", "all"],
    "verify": ["verify", "run"],
    "report": ["report", "run"],
    "export": ["export", "run", "--out", "exported"],
    "gc": ["gc", "run", "--dry-run"],
    "stages": ["stages"],
    "stage": ["stages", "text_rules"],
    "doctor": ["doctor"],
}


@pytest.mark.parametrize("name", READING)
def test_every_command_that_reads_answers_in_json_and_in_80_columns(folder, name):
    plugins = [] if name in ("verify", "export") else ["--import", str(TOYS)]
    asked = pairmill(folder, *READING[name], *plugins, "--json")
    assert asked.returncode in ((0, 1) if name == "doctor" else (0,)), asked.stderr
    assert json.loads(asked.stdout)
    told = pairmill(folder, *READING[name], *plugins, NO_COLOR="1")
    assert told.returncode == asked.returncode and "\x1b" not in told.stdout
    long = [line for line in told.stdout.splitlines() if len(line) > 80 and not line.strip().startswith(("pairmill ", "/", str(folder)))]
    assert long == []


def test_the_summary_and_each_line_of_progress_are_json(folder):
    assert json.loads((folder / "summary").read_text())["rows"]["input"] == 30
    events = [json.loads(line) for line in (folder / "progress").read_text().splitlines() if line.startswith("{")]
    assert {"input", "schedule", "executor", "done", "verdict", "job", "job_done"} <= {event["event"] for event in events}
    others = [line for line in (folder / "progress").read_text().splitlines() if not line.startswith("{")]
    assert len(others) <= 1, others  # the last note says how long it took and what to do next


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_has_a_script_for_each_shell(folder, shell):
    script = pairmill(folder, _PAIRMILL_COMPLETE=f"source_{shell}")
    assert script.returncode == 0 and "pairmill" in script.stdout


@pytest.mark.parametrize(("line", "wanted"), [("pairmill ex", {"explain", "export"}), ("pairmill run --exec", {"--executor"})])
def test_completion_finishes_commands_and_options(folder, line, wanted):
    script = "import sys; sys.argv = ['pairmill']; from pipeline.cli import main; main()"
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "_PAIRMILL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    told = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, timeout=60)
    assert set(told.stdout.split()) == wanted, told
