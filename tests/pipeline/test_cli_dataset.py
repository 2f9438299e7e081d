"""The commands export and gc, --version, and completion: streams, JSON, width."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from pipeline.cli import app

IMAGES = Path(__file__).parents[1] / "stages/shards/toys.py"


def pairmill(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80", "NO_COLOR": "1"})


def assert_wrong(result: Result, word: str) -> None:
    assert (result.exit_code, result.stdout) == (2, "") and word in " ".join(result.stderr.split()) and "Traceback" not in result.stderr, result.stderr


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A finished run of pictures with a dataset."""
    recipe = {"name": "pictures", "input": {"kind": "pictures", "rows": 60}, "stages": ["store_images", {"rate": {"min": 0.3}}], "jobs": ["write_shards"]}
    (tmp_path / "pictures.yaml").write_text(yaml.safe_dump(recipe))
    done = pairmill("run", str(tmp_path / "pictures.yaml"), "--import", str(IMAGES), "--out", str(tmp_path / "run"), "--executor", "local")
    assert done.exit_code == 0, done.output
    return tmp_path / "run"


def test_export_tells_what_it_wrote(images: Path, tmp_path: Path) -> None:
    told = pairmill("export", str(images), "--out", str(tmp_path / "out"), "--json")
    assert told.exit_code == 0 and told.stderr == ""
    assert json.loads(told.stdout) == {"rows": 25, "files": 1, "written": 1, "out": str(tmp_path / "out")}
    again = pairmill("export", str(images / "dataset"), "--out", str(tmp_path / "out"), "--split", "train")
    assert again.exit_code == 0 and "25 pairs in 1 files (0 written now)" in again.stdout and "load_dataset" in again.stderr
    assert_wrong(pairmill("export", str(images), "--out", str(tmp_path / "out"), "--split", "test"), "no such split")
    assert_wrong(pairmill("export", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")), "manifest.json is missing")


def test_gc_tells_what_becomes_impossible(images: Path) -> None:
    more = ("--import", str(IMAGES))
    plain = pairmill("gc", str(images), *more)
    assert plain.exit_code == 0 and "0 tars" in plain.stdout and "No change of the recipe becomes impossible" in plain.stdout
    tried = json.loads(pairmill("gc", str(images), *more, "--dead-rows", "--dry-run", "--json").stdout)
    done = pairmill("gc", str(images), *more, "--dead-rows")
    assert done.exit_code == 0 and "\x1b" not in done.stdout and max(map(len, done.stdout.splitlines())) <= 80
    assert re.search(rf"rate +low_clip +{tried['images']}\b", done.stdout) and "needs a new download" in done.stdout
    assert tried["dry_run"] and tried["freed_bytes"] > 0
    assert_wrong(pairmill("gc", str(images), *more, "--dead-rows", "--fetch-again"), "one of the two")
    assert_wrong(pairmill("gc", str(images / "nothing"), *more), "no run here")


def test_version_and_completion() -> None:
    told = pairmill("--version")
    assert told.exit_code == 0 and re.fullmatch(r"pairmill \d+\.\d+\.\d+\n", told.stdout)
    assert "--install-completion" in pairmill("--help").stdout


@pytest.mark.parametrize("command", ["plan", "status", "explain", "verify", "stages", "export", "gc"])
def test_every_command_that_tells_something_can_tell_it_to_programs(command: str) -> None:
    told = pairmill(command, "--help")
    assert told.exit_code == 0 and "--json" in told.stdout
    assert max(len(line) for line in told.stdout.splitlines() if "pairmill " not in line) <= 80  # an example is never cut, so that it can be copied
