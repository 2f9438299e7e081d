"""Complexity and action of texts, counted by hand, and the rows that go for want of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run
from schemas.outcome import Drop
from stages.text.structure import structure
from stages.text_structure import TextStructure

pytest.importorskip("HanTa")
COUNTED = [
    ("a dog", 0, 0),
    ("sunset", 0, 0),
    ("", 0, 0),
    ("a man and a woman", 0, 0),
    ("a brown dog", 1, 0),  # brown
    ("the cat is on the mat", 1, 0),  # on
    ("the sky is clear", 1, 0),  # clear
    ("house for sale", 1, 0),  # for
    ("a broken window", 1, 0),
    ("dog runs park", 1, 1),
    ("a dog runs in the park", 1, 1),
    ("children are playing", 1, 1),
    ("She sings", 1, 1),
    ("two women playing tennis", 2, 1),  # of the women: two, playing
    ("a smiling woman holds a large umbrella", 2, 1),  # of either: an adjective, holds
    ("a red car parked near a house", 2, 1),  # of the car: red, parked
    ("a lady waiting for a bus at night", 2, 1),  # of the bus: waiting for, at
    ("A dog. A small brown dog runs over a field.", 3, 1),  # of the second: small, brown, runs
]


@pytest.mark.parametrize(("text", "complexity", "actions"), COUNTED)
def test_complexity_and_actions_are_those_counted_by_hand(text: str, complexity: int, actions: int) -> None:
    found = structure(text)
    assert (found.complexity, found.actions) == (complexity, actions)


def test_limits_at_their_edges() -> None:
    def decide(complexity: int | None, actions: int | None, **params: Any) -> Drop | None:
        return TextStructure(TextStructure.Params(**params)).decide({"complexity": complexity, "n_actions": actions}, {})

    assert decide(1, 1) is None and decide(0, 1) == Drop("low_complexity", "0 < 1") and decide(1, 0) == Drop("no_action", "no full verb")
    assert decide(0, 0, min_complexity=None, action=False) is None and decide(2, 1, min_complexity=3) == Drop("low_complexity", "2 < 3")
    assert decide(None, None) is None, "a text in another language is not judged"


def test_rows_of_a_run_go_for_their_own_reason_and_other_languages_stay(tmp_path: Path) -> None:
    rows = [
        ("a brown dog runs over the green meadow", None),
        ("a view of the old town and the harbour", "no_action"),
        ("buy now and save", "low_complexity"),
        ("ein brauner Hund und eine schwarze Katze auf der Wiese", None),
    ]
    pq.write_table(pa.table({"url": [f"https://one.example/{nth}" for nth in range(4)], "alt_text": [text for text, _ in rows]}), tmp_path / "t.parquet")
    recipe = {
        "input": {"kind": "url_table", "table": str(tmp_path / "t.parquet")},
        "stages": [{"text_rules": {"languages": ["en", "de"]}}, "text_structure"],
    }
    result = run(build_recipe(recipe), tmp_path / "run", RunOptions(executor="local", jobs=False))
    assert [row["reason"] for row in result.view.final(result.view.view(0)).to_pylist()] == [reason for _, reason in rows]
