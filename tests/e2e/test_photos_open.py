"""What a new user does with a folder of photos: the default recipe, with and without its table of captions, and the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PHOTOS = Path(os.environ.get("PAIRMILL_TEST_DATA", ""), "photos_open")
pytestmark = pytest.mark.skipif(not (PHOTOS / "images").is_dir(), reason="PAIRMILL_TEST_DATA names no folder with photos_open in it")
CAPTIONS = ["--set", "input.table=captions.jsonl", "--set", "input.table_file=file", "--set", "input.table_text=captions"]


def run_folder(out: Path, *more: str) -> tuple[dict, str]:
    """The summary of the run and its page."""
    command = [sys.executable, "-m", "pipeline.cli", "run", "caption_folder", "--set", f"input.folder={PHOTOS}", "--out", str(out), "--json", *more]
    told = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=200)
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout), (out / "report.html").read_text()


def test_a_folder_without_captions_says_so(tmp_path):
    found, page = run_folder(tmp_path / "run")
    assert found["rows"] == {**found["rows"], "input": 119, "kept": 119} and found["jobs"]["report"]["kept_without_text"] == 119
    assert "119 of the kept rows have no text" in page and "--set input.table=FILE" in page
    assert "images from files, with the texts beside them" in page and "found on the web" not in page and "alt-text" not in page.split("<pre")[0]


def test_its_table_of_captions_gives_five_to_each_photo(tmp_path):
    found, page = run_folder(tmp_path / "run", *CAPTIONS)
    assert found["rows"]["kept"] == 119 and found["jobs"]["report"]["kept_without_text"] == 0
    assert "have no text" not in page and "further caption" in page and "cleaned" not in page.split("<pre")[0]
    assert "caption beside the image, <code>alt_text</code></td><td>595</td><td>119</td>" in page
