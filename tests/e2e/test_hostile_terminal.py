"""Hostile texts in a terminal: the real commands on a real pseudo-terminal, 60 and 160 columns wide, with attacks in every place that is shown.

The places: alt-texts, URLs, carried values, a column's name, failure details, a stage that raises, the recipe's name, the message of an error, what
verify says of a tampered dataset.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rich.cells import cell_len

from tests.stages.report.attacks import ATTACKS, hostile_rows

REPOSITORY = Path(__file__).parents[2]
TOYS = REPOSITORY / "tests" / "stages" / "report" / "toys.py"
EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil\nkept: forged line\r\x08\u2028"
RAISES = '''
import pyarrow as pa
from pipeline.stage import Stage


class Raises(Stage):
    """Raises with a text of the row, as a codec might."""

    name = "raises"
    reads = ("alt_text", "given")
    writes = {"length": pa.int64()}

    def compute(self, rows, ctx):
        for row in rows:
            if row["given"] > 0.9:
                raise ValueError(f"cannot read {row['alt_text']}")
        return [{"length": len(row["alt_text"])} for row in rows]
'''
OURS = re.compile(r"\x1b\[(?:0|1|2|[0-9]{1,3}(?:;[0-9]{1,3})*)?m|\x1b\[\?25[lh]|\x1b\[[0-9]*[AK]|\r")  # styles, cursor and erasing of the live table
FORBIDDEN = ("Cc", "Cs", "Cn", "Zl", "Zp")
COMMAND = re.compile(r"^\s*(pairmill |error: |\S*/)")  # commands and paths stay whole, so that they can be copied


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """A folder with a recipe and its finished run of hostile rows."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "raises.py").write_text(RAISES)
    (folder / "rows.json").write_text(json.dumps(hostile_rows()))
    recipe = {
        "name": f"web {EVIL}",
        "input": {"kind": "given_rows", "file": str(folder / "rows.json"), "column": f"note {EVIL}", "rows_per_part": 16},
        "stages": ["paint", {"grade": {"min": 0.3}}, "raises"],
        "jobs": ["write_shards"],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def on_a_terminal(folder: Path, width: int, *arguments: str, color: bool = False) -> tuple[int, str]:
    """Exit code and all that the command wrote to its terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
    variables = {**kept, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm-256color", "LANG": "C.UTF-8", **({} if color else {"NO_COLOR": "1"})}
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    process = subprocess.Popen(command, cwd=folder, env=variables, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    told = b""
    while True:
        try:
            block = os.read(master, 65536)
        except OSError:  # the process has closed its side
            break
        if not block:
            break
        told += block
    os.close(master)
    return process.wait(60), told.decode()


def assert_harmless(told: str, width: int, wraps: bool = True) -> str:
    """No control but ours, no turned direction, no forged line; every line within the width. Returns the text without our controls."""
    text = OURS.sub("", told.replace("\r\x1b[2K", "\n"))  # a line that the live table draws anew counts as one of its own
    for letter in set(text) - {"\n"}:
        assert unicodedata.category(letter) not in FORBIDDEN, (repr(letter), text[max(0, text.find(letter) - 60) :][:120])
        assert not 0x202A <= ord(letter) <= 0x202E and not 0x2066 <= ord(letter) <= 0x2069 and letter not in "\u200e\u200f\u061c", repr(letter)
    for line in text.split("\n"):
        assert not line.startswith("kept: forged line"), text[:2000]
        if wraps and not COMMAND.match(line):
            assert cell_len(line.rstrip()) <= width, (cell_len(line), line)
    assert len(text) < 120_000, "a text of 100 KB was shown whole"
    return text


@pytest.fixture(scope="module", params=[60, pytest.param(160, marks=pytest.mark.slow)])
def width(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def pairmill(hostile: Path, width: int) -> Callable[..., str]:
    """Runs a command on the hostile run in a terminal of this width, after the run itself was made in one."""
    plugins = ("--import", str(TOYS), "--import", "raises.py")

    def run(*arguments: str, code: int = 0, wraps: bool = True) -> str:
        found, told = on_a_terminal(hostile, width, *arguments, *plugins)
        assert found == code, told[-3000:]
        return assert_harmless(told, width, wraps)

    made = run("run", "recipe.yaml", "--out", f"run-{width}", "--executor", "local", "--progress", "table")
    assert "32 in = " in made
    return run


def test_progress_as_lines_and_the_summary(pairmill, width):
    assert "executor local" in pairmill("run", "recipe.yaml", "--out", f"lines-{width}", "--executor", "local", "--progress", "lines", wraps=False)


def test_plan(pairmill, width):
    assert "\\x1b" in pairmill("plan", "recipe.yaml", "--out", f"run-{width}", "--set", "grade.min=0.9")


def test_status(pairmill, width):
    assert "finished" in pairmill("status", f"run-{width}")


def test_failures_with_examples(pairmill, width):
    told = pairmill("failures", f"run-{width}", "--dropped", "--examples", "40")
    assert "http_4xx" in told and "stage_error" in told and "cannot read" in told


def test_explain_of_rows_with_long_turning_and_acting_texts(pairmill, hostile, width):
    for number in (9, 10, 12, 14):  # directions, controls, 100 KB of words, marks (and a failed row)
        assert "became:" in pairmill("explain", f"run-{width}", hostile_rows()[number]["url"])


def plain(hostile: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "pipeline.cli", *arguments, "--import", str(TOYS), "--import", "raises.py"]
    return subprocess.run(command, cwd=hostile, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=True).stdout


def test_json_on_a_terminal_is_harmless_and_says_the_same(pairmill, hostile, width):
    """A reader of the JSON gets the text as it is; the terminal gets escapes."""
    identifier = json.loads(plain(hostile, "failures", f"run-{width}", "--json", "--examples", "40"))["groups"][0]["examples"][0]["sample_id"]
    found, told = on_a_terminal(hostile, width, "explain", f"run-{width}", identifier, "--json", "--import", str(TOYS), "--import", "raises.py")
    assert found == 0
    assert_harmless(told, width, wraps=False)
    source = json.loads(told)[0]["source"]
    assert source["alt_text"] in ATTACKS and source[f"note {EVIL}"] in ATTACKS


def test_error_messages(pairmill, width):
    assert "\\x1b" in pairmill("run", "recipe.yaml", "--out", "x", "--set", f"grade.{EVIL}=1", code=2, wraps=False)
    assert "no such" in pairmill("run", f"{EVIL}.yaml", "--out", "x", code=2, wraps=False)
    assert "no row" in pairmill("explain", f"run-{width}", EVIL, code=2, wraps=False)


def test_hostile_column_names_of_a_table(pairmill, hostile, width):
    (hostile / "table.csv").write_text('"' + EVIL.replace("\n", " ").replace("\r", "") + '",alt_text\nx,y\n')
    told = pairmill("run", "web_pairs", "--set", "input.table=table.csv", "--out", "x", code=2, wraps=False)
    assert "no column 'url'" in " ".join(told.split()) and "\\x1b" in told


def test_verify_of_a_tampered_dataset(pairmill, hostile, width):
    manifest = hostile / f"run-{width}" / "dataset" / "manifest.json"
    whole = manifest.read_text()
    try:
        data = json.loads(whole)
        name, known = next(iter(data["files"].items()))
        data["files"][f"shards/{EVIL}.tar"] = known
        manifest.write_text(json.dumps(data))
        found, told = on_a_terminal(hostile, width, "verify", f"run-{width}")
    finally:
        manifest.write_text(whole)
    assert found == 1 and "\\x1b" in assert_harmless(told, width, wraps=False)


def test_doctor_with_a_hostile_recipe(pairmill, hostile, width):
    (hostile / "bad.yaml").write_text(yaml.safe_dump({"name": EVIL, "input": {"kind": EVIL}, "models": {"m": {"kind": EVIL}}, "stages": []}))
    _, told = on_a_terminal(hostile, width, "doctor", "bad.yaml")
    assert "\\x1b" in assert_harmless(told, width)


def test_colours_are_ours_alone_and_no_color_leaves_them_out(hostile, pairmill, width):
    _, coloured = on_a_terminal(hostile, width, "doctor", color=True)
    _, without = on_a_terminal(hostile, width, "doctor")
    colours = re.compile(r"\x1b\[[0-9;]*3[0-7][0-9;]*m")
    assert colours.search(coloured) and not colours.search(without)
    assert_harmless(coloured, width)
