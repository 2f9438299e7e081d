"""The stage of docs/plugin_stage.md, run as the page says: by --import, and as an installed package with an entry point."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "docs" / "examples"
PLUGIN = EXAMPLES / "colour_words.py"
TABLE = """url,caption
https://example.org/1.jpg,A red car in front of a white house
https://example.org/2.jpg,Ein Haus am See
https://example.org/3.jpg,Green grass
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.csv"
    path.write_text(TABLE)
    return path


def pairmill(*arguments: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    paths = [str(REPOSITORY), *([str(path)] if path else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run([sys.executable, "-m", "pipeline.cli", *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=120)


def options(table: Path) -> list[str | Path]:
    return [EXAMPLES / "colours.yaml", "--set", f"input.table={table}", "--executor", "local", "--json"]


def test_by_import(table, tmp_path):
    out = tmp_path / "RUN"
    told = pairmill("run", *options(table), "--import", PLUGIN, "--out", out)
    assert told.returncode == 0, told.stderr
    rows = json.loads(told.stdout)["rows"]
    assert (rows["input"], rows["kept"]) == (3, 2)
    assert rows["by_reason"]["dropped"] == [{"stage": "colour_words", "reason": "custom", "rows": 1}]

    plan = pairmill("plan", *options(table), "--import", PLUGIN, "--out", out, "--set", "colour_words.min_words=2")
    (stage,) = json.loads(plan.stdout)["stages"]
    assert stage["rows"] == [0, 0] and stage["kept"] == [1, 1]
    assert stage["why"] == ["only the verdict changes: min_words 1 -> 2"]

    (life,) = json.loads(pairmill("explain", out, "https://example.org/1.jpg", "--import", PLUGIN, "--json").stdout)
    assert life["stages"][0]["values"] == {"n_colour_words": 2, "colours": ["red", "white"]}


def test_by_entry_point(table, tmp_path):
    site = tmp_path / "site"
    (site / "my_package").mkdir(parents=True)
    (site / "my_package" / "__init__.py").write_text("")
    shutil.copy(PLUGIN, site / "my_package" / "colour_words.py")
    info = site / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pairmill.plugins]\ncolour_words = my_package.colour_words:ColourWords\n")
    told = pairmill("run", *options(table), "--out", tmp_path / "RUN", path=site)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["rows"]["kept"] == 2


def test_the_page_shows_what_the_files_say():
    page = (REPOSITORY / "docs" / "plugin_stage.md").read_text()
    assert "docs/examples/colours.yaml --import docs/examples/colour_words.py" in page
    assert 'colour_words = "my_package.colour_words:ColourWords"' in page
