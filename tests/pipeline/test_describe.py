"""`stages`: what it says of a plug-in is what the class declares."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import registry
from pipeline.describe import all_plugins, describe, parameters, print_all, print_one
from pipeline.errors import RecipeError
from pipeline.stage import Params, decides, tunes


@pytest.fixture(autouse=True)
def toys() -> None:
    registry.import_file(str(Path(__file__).parent / "toys.py"))


def test_all_kinds_are_listed_with_a_line_each():
    found = all_plugins()
    assert list(found) == ["sources", "stages", "jobs", "models"]
    assert "url_table" in found["sources"] and {"download", "score"} <= set(found["stages"]) and "open_clip" in found["models"]
    assert all(line and "\n" not in line for plugins in found.values() for line in plugins.values())
    screen = io.StringIO()
    print_all(found, Console(file=screen, width=80))
    assert max(len(line) for line in screen.getvalue().splitlines()) <= 80


def test_all_are_listed_where_no_library_of_a_model_is_installed():
    blocked = "for name in ('torch', 'torchvision', 'open_clip', 'transformers', 'vllm', 'ray'): sys.modules[name] = None"
    listed = "from pipeline.describe import all_plugins\nprint(json.dumps({kind: list(names) for kind, names in all_plugins().items()}))"
    program = f"import json, sys\n{blocked}\n{listed}"
    told = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=250)
    assert told.returncode == 0, told.stderr
    here = all_plugins()
    assert json.loads(told.stdout)["models"] == list(here["models"]) and {"clip_score", "caption"} <= set(json.loads(told.stdout)["stages"])


def test_one_stage():
    found = describe("score")
    assert found["kind"] == "stage" and found["reads"] == ["sample_id", "value"] and found["writes"] == {"score": "int64"}
    assert "below_cut" in found["drops"]  # as its file names it
    by_name = {entry["name"]: entry for entry in found["parameters"]}
    assert by_name["factor"]["affects"] == "compute" and by_name["factor"]["default"] == 3 and by_name["factor"]["type"] == "int"
    assert by_name["min"]["affects"] == "decide" and by_name["min"]["description"] == "least score kept"
    assert by_name["calls"]["type"] == "str or null"


def test_nested_and_tuning_parameters():
    class Inner(Params):
        depth: int = 2

    class Outer(Params):
        rules: Inner = decides(Inner(), "rules")
        threads: int = tunes(4, "threads")
        must: str

    found = {entry["name"]: entry for entry in parameters(Outer)}
    assert found["rules.depth"]["affects"] == "decide" and found["rules.depth"]["default"] == 2
    assert found["threads"]["affects"] == "nothing" and found["must"]["required"] and "default" not in found["must"]


def test_every_plugin_can_be_described_and_printed():
    for plugins in all_plugins().values():
        for name in plugins:
            screen = io.StringIO()
            print_one(describe(name), Console(file=screen, width=80))
            assert name in screen.getvalue()
            assert max(len(line) for line in screen.getvalue().splitlines()) <= 80, name


def test_every_parameter_is_described():
    """What `pairmill stages NAME` prints is the only documentation of a built-in parameter."""
    missing = [
        f"{name}.{entry['name']}"
        for kind in ("sources", "stages", "jobs")
        for name in all_plugins()[kind]
        if "pairmill_plugin" not in registry.find(kind[:-1], name).__module__
        for entry in describe(name)["parameters"]
        if not entry["description"]
    ]
    assert missing == []


def test_unknown_name():
    with pytest.raises(RecipeError, match="did you mean 'download'"):
        describe("downlod")
