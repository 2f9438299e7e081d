"""The command line: exit codes, what goes to which stream, and messages that name the place and the next step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from pipeline.cli import app

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
TOYS = ["--import", str(HERE / "toys.py")]
STAGES = [{"score": {"min": 100}}, {"first_url": {}}, {"flaky": {}}, {"score2": {"use": "score", "factor": 5, "min": 200}}]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump({"name": "toy", "input": {"kind": "numbers", "rows": 300, "rows_per_part": 100}, "stages": STAGES}))
    return str(path)


def pairmill(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80", "NO_COLOR": "1"})


def run_toy(recipe: str, out: Path, *more: str) -> Result:
    return pairmill("run", recipe, *TOYS, "--out", str(out), "--executor", "local", *more)


def assert_wrong(result: Result, *words: str, code: int = 2) -> None:
    """Exit code, all words on standard error, nothing on standard output, no traceback."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


def test_run_ends_with_numbers_that_add_up(recipe, tmp_path):
    result = run_toy(recipe, tmp_path / "run", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    rows = found["rows"]
    assert rows["input"] == 300 == rows["kept"] + rows["dropped"] + rows["failed"]
    for kind in ("dropped", "failed"):
        assert sum(entry["rows"] for entry in rows["by_reason"][kind]) == rows[kind] > 0
    assert {"stage": "source", "reason": "bad_row", "rows": 3} in rows["by_reason"]["failed"]
    reached = found["stages"]
    assert [stage["stage"] for stage in reached] == ["source", "score", "first_url", "flaky", "score2"]
    for before, after in zip(reached, reached[1:], strict=False):
        assert before["kept"] == after["in"] == after["kept"] + after["dropped"] + after["failed"]
    assert reached[1]["computed"] == 297


def test_summary_is_readable_in_80_columns_and_progress_is_on_standard_error(recipe, tmp_path):
    result = run_toy(recipe, tmp_path / "run")
    assert result.exit_code == 0
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    assert "300 in = " in result.stdout and "\x1b" not in result.stdout
    assert "barrier first_url: passed" in result.stderr and "barrier" not in result.stdout


def test_second_run_computes_nothing(recipe, tmp_path):
    run_toy(recipe, tmp_path / "run")
    again = json.loads(run_toy(recipe, tmp_path / "run", "--json").stdout)
    assert sum(stage["computed"] for stage in again["stages"]) == 0


def test_set_limit_and_sample(recipe, tmp_path):
    found = json.loads(run_toy(recipe, tmp_path / "run", "--json", "--limit", "50", "--set", "score.min=1000").stdout)
    assert found["rows"]["input"] == 50 and found["rows"]["kept"] == 0
    half = json.loads(run_toy(recipe, tmp_path / "half", "--json", "--sample", "0.5").stdout)
    assert 100 < half["rows"]["input"] < 200


@pytest.mark.parametrize("command", ["run", "plan", "status", "explain", "failures", "retry", "verify", "demo", "stages", "doctor"])
def test_every_command_has_help_with_an_example(command):
    result = pairmill(command, "--help")
    assert result.exit_code == 0
    assert f"pairmill {command}" in result.stdout.split("Example:")[1]


def test_plan_status_and_explain_give_json(recipe, tmp_path):
    out = tmp_path / "run"
    run_toy(recipe, out)
    plan = json.loads(pairmill("plan", recipe, *TOYS, "--out", str(out), "--set", "score.min=150", "--json").stdout)
    assert plan["stages"][0]["why"] == ["only the verdict changes: min 100 -> 150"]
    status = json.loads(pairmill("status", str(out), *TOYS, "--json").stdout)
    assert status["state"] == "finished" and status["account"]["input"] == 300
    lives = json.loads(pairmill("explain", str(out), "u16", *TOYS, "--json").stdout)
    assert [life["source"]["alt_text"] for life in lives] == ["text 16", "text 17"]


def test_plan_in_80_columns(recipe):
    result = pairmill("plan", recipe, *TOYS)
    assert result.exit_code == 0
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    assert "barrier: first_url waits for all parts" in result.stdout


# What goes wrong


def test_unknown_recipe():
    assert_wrong(pairmill("run", "web_pair", "--out", "x"), "no recipe 'web_pair'", "did you mean 'web_pairs'?")


def test_missing_recipe_file(tmp_path):
    assert_wrong(pairmill("run", str(tmp_path / "no.yaml"), "--out", "x"), "no.yaml: no such file")


def test_unknown_stage(recipe, tmp_path):
    Path(recipe).write_text(Path(recipe).read_text().replace("flaky", "flakey"))
    assert_wrong(run_toy(recipe, tmp_path / "run"), "unknown stage 'flakey'", "did you mean 'flaky'?", "pairmill stages")


def test_unknown_key(recipe, tmp_path):
    assert_wrong(run_toy(recipe, tmp_path / "run", "--set", "score.mim=3"), "stages.score: unknown key 'mim'", "did you mean 'min'?")


def test_unknown_stage_in_set(recipe, tmp_path):
    assert_wrong(run_toy(recipe, tmp_path / "run", "--set", "scor.min=3"), "--set scor.min=3", "did you mean 'score'?")


def test_wrong_type(recipe, tmp_path):
    assert_wrong(run_toy(recipe, tmp_path / "run", "--set", "score.min=many"), "stages.score.min", "integer", "'many'")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--limit", "0"], ["--limit", "greater than or equal to 1"]),
        (["--sample", "1.5"], ["input.sample", "1.5"]),
        (["--workers", "0"], ["--workers"]),
        (["--executor", "spark"], ["--executor", "spark", "local"]),
        (["--set", "input.rows_per_part=0"], ["input.rows_per_part", "0"]),
    ],
)
def test_out_of_range(recipe, tmp_path, options, words):
    assert_wrong(run_toy(recipe, tmp_path / "run", *options), *words)
    assert not (tmp_path / "run").exists()


def table_run(tmp_path: Path, table: Path, *more: str) -> Result:
    example = str(REPOSITORY / "docs" / "examples" / "colours.yaml")
    plugin = str(REPOSITORY / "docs" / "examples" / "colour_words.py")
    return pairmill("run", example, "--import", plugin, "--set", f"input.table={table}", "--out", str(tmp_path / "run"), *more)


def test_input_that_must_be_named(tmp_path):
    """A built-in recipe leaves the table open; the message says what belongs there."""
    assert_wrong(pairmill("plan", "web_pairs"), "input.table: is required: path, glob")


def test_a_built_in_recipe_is_planned_in_narrow_terminals(tmp_path):
    (tmp_path / "pairs.csv").write_text("url,alt_text\nhttps://example.org/1.jpg,A red car in front of a house\n")
    for width in (60, 80):
        arguments = ["plan", "web_pairs", "--set", f"input.table={tmp_path / 'pairs.csv'}"]
        told = CliRunner().invoke(app, arguments, env={"COLUMNS": str(width), "NO_COLOR": "1"})
        assert told.exit_code == 0, told.stderr
        lines = told.stdout.splitlines()
        assert max(len(line) for line in lines) <= width and len(lines) < 100
        assert "clip: open_clip, name ViT-B-32" in told.stdout and "the image of download" in told.stdout


def test_missing_input_file(tmp_path):
    assert_wrong(table_run(tmp_path, tmp_path / "no.csv"), "input.table", "no.csv")


def test_wrong_column(tmp_path):
    (tmp_path / "pairs.csv").write_text("url,captions\nhttps://example.org/1.jpg,red\n")
    assert_wrong(table_run(tmp_path, tmp_path / "pairs.csv"), "no column 'caption'", "did you mean 'captions'?", "pairs.csv")


def test_empty_input(tmp_path):
    (tmp_path / "pairs.csv").write_text("url,caption\n")
    assert_wrong(table_run(tmp_path, tmp_path / "pairs.csv"), "input: table", "pairs.csv has no rows")


def test_column_that_no_stage_writes(recipe, tmp_path):
    (tmp_path / "needs.py").write_text(
        "import pyarrow as pa\nfrom pipeline.stage import Stage\n\n\nclass Needs(Stage):\n    name = 'needs_scores'\n    reads = ('scores',)\n"
        "    writes = {'x': pa.int32()}\n"
    )
    Path(recipe).write_text(Path(recipe).read_text().replace("flaky: {}", "needs_scores: {}"))
    result = run_toy(recipe, tmp_path / "run", "--import", str(tmp_path / "needs.py"))
    assert_wrong(result, "stages.needs_scores: reads column 'scores'", "did you mean 'score'?")


def test_run_folder_of_another_input(recipe, tmp_path):
    run_toy(recipe, tmp_path / "run")
    assert_wrong(run_toy(recipe, tmp_path / "run", "--set", "input.rows=200"), "a run of another input", "--out")


def test_folder_without_a_run(tmp_path):
    assert_wrong(pairmill("status", str(tmp_path)), "no run here", "pairmill run")
    assert_wrong(pairmill("verify", str(tmp_path)), "no dataset here", "manifest.json")


def test_corrupted_run_json(recipe, tmp_path):
    out = tmp_path / "run"
    run_toy(recipe, out)
    whole = (out / "run.json").read_text()
    for damaged in (whole[: len(whole) // 2], "[]", "{}"):
        (out / "run.json").write_text(damaged)
        for command in (["status", str(out)], ["plan", recipe, "--out", str(out)], ["explain", str(out), "u1"]):
            assert_wrong(pairmill(*command, *TOYS), str(out), "run.json")
        assert_wrong(run_toy(recipe, out), "run.json")
    (out / "run.json").unlink()  # what the message of a damaged file advises
    again = json.loads(run_toy(recipe, out, "--json").stdout)
    assert sum(stage["computed"] for stage in again["stages"]) == 0


def test_damaged_part_file_is_named(recipe, tmp_path):
    out = tmp_path / "run"
    run_toy(recipe, out)
    part = out / "values" / "flaky" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:100])
    assert_wrong(run_toy(recipe, out), str(part), "delete it", code=1)
    part.unlink()
    assert run_toy(recipe, out).exit_code == 0
    whole = bytearray(part.read_bytes())
    whole[4:200] = bytes(196)  # the footer is whole, the columns are not
    part.write_bytes(whole)
    assert_wrong(run_toy(recipe, out, "--set", "flaky.max=50"), str(part), "delete it", code=1)


def test_budget_ends_with_code_1_and_the_cause(recipe, tmp_path):
    book = tmp_path / "book.json"
    book.write_text(json.dumps({f"u{i}": "dns" for i in range(300)}))
    options = ["--set", f"flaky.book={book}", "--set", "budgets.flaky.min_rows=20"]
    assert_wrong(run_toy(recipe, tmp_path / "run", *options), "flaky: 100% of the first 20 rows failed, all dns", "check the resolver", code=1)


def test_folder_in_use(recipe, tmp_path):
    from pipeline.lock import RunLock

    lock = RunLock(tmp_path / "run")
    lock.acquire()
    try:
        assert_wrong(run_toy(recipe, tmp_path / "run"), "another run works here", str(os.getpid()), code=1)
    finally:
        lock.release()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def broken(:\n", ["SyntaxError", "line 1"]),
        ("import no_such_package\n", ["No module named 'no_such_package'"]),
        ("x = 1\n", ["defines no Stage, Source or Job"]),
        (None, ["no such file"]),
    ],
)
def test_bad_plugin_file(recipe, tmp_path, text, words):
    path = tmp_path / "plugin.py"
    if text is not None:
        path.write_text(text)
    assert_wrong(pairmill("run", recipe, "--import", str(path), "--out", "x"), "--import", "plugin.py", *words)


def test_explain_of_unknown_and_ambiguous_rows(recipe, tmp_path):
    out = tmp_path / "run"
    run_toy(recipe, out)
    assert_wrong(pairmill("explain", str(out), "abc", *TOYS), "at least 6 digits")
    assert_wrong(pairmill("explain", str(out), "abcdef", *TOYS), "no row", "300 rows")
    assert_wrong(pairmill("explain", str(out), "https://example.org/none.jpg", *TOYS), "no row")


def test_debug_shows_the_traceback(recipe, tmp_path):
    result = run_toy(recipe, tmp_path / "run", "--set", "score.mim=3", "--debug")
    assert type(result.exception).__name__ == "RecipeError"


def test_usage_errors_have_code_2():
    for arguments in (["run"], ["run", "web_pairs"], ["nothing"], ["status"], ["run", "x", "--out", "y", "--progress", "dots"]):
        assert_wrong(pairmill(*arguments))


def test_ray_that_is_not_installed_is_named_before_anything_is_written(recipe, tmp_path):
    code = "import sys; sys.modules['ray'] = None; from pipeline.cli import main; main()"
    arguments = ["run", recipe, *TOYS, "--out", str(tmp_path / "run")]
    told = subprocess.run([sys.executable, "-c", code, *arguments, "--executor", "ray"], cwd=REPOSITORY, capture_output=True, text=True)
    assert told.returncode == 2 and told.stdout == ""
    assert "--executor ray: Ray is not installed" in told.stderr and "Traceback" not in told.stderr
    assert not (tmp_path / "run").exists()
    assert subprocess.run([sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True).returncode == 0


def test_a_reader_that_goes_away_is_no_error(recipe, tmp_path):
    command = f"{sys.executable} -m pipeline.cli stages text_rules | head -n 1"
    told = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=REPOSITORY, capture_output=True, text=True)
    assert told.stdout.startswith("stage text_rules") and told.stderr == ""
