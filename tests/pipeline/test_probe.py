"""`plan --probe`: what a probe measures is what a run of so many rows measures, and what it foretells is in proportion; where it is kept."""

from __future__ import annotations

import functools
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline import registry
from pipeline.cli import app
from pipeline.errors import RecipeError
from pipeline.lock import RunLock
from pipeline.plan import make_plan
from pipeline.probe import keep_probe, make_probe
from pipeline.recipe import Recipe, build_recipe
from pipeline.run import RunOptions, open_run, run
from pipeline.storage import place_of
from pipeline.store import Store
from stages import caption

LOCAL = RunOptions(executor="local", workers=1)
TOYS = Path(__file__).parent / "toys.py"


def toy_recipe(rows: int = 400) -> Recipe:
    registry.import_file(str(TOYS))
    stages: list[Any] = [{"score": {"min": 100}}, {"first_url": {}}, {"flaky": {}}, {"score2": {"use": "score", "factor": 5, "min": 200}}]
    return build_recipe({"name": "toy", "input": {"kind": "numbers", "rows": rows, "rows_per_part": 100}, "stages": stages})


def caption_recipe(folder: Path, count: int = 30, seconds: float = 0.02) -> dict[str, Any]:
    folder.mkdir()
    for number in range(count):
        out = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(pixels).resize((64, 48)).save(out, "JPEG")
        (folder / f"{number:03}.jpg").write_bytes(out.getvalue())
        (folder / f"{number:03}.txt").write_text(f"a red dog, number {number}")
    return {
        "input": {"kind": "image_folder", "folder": str(folder)}, "models": {"mllm": {"kind": "fake", "seconds": seconds, "concurrency": 1}},
        "stages": ["read_images", "caption"], "jobs": ["report"],
    }  # fmt: skip


def test_a_probe_measures_a_run_of_so_many_rows_and_scales_it(tmp_path: Path) -> None:
    recipe = toy_recipe()
    probe = make_probe(recipe, make_plan(recipe, None), 150)
    small = toy_recipe().resolved
    small["input"] |= {"limit": 150, "rows_per_part": 150}
    result = run(build_recipe(small), tmp_path / "small", LOCAL)
    found = {one.stage: one for one in probe.stages}
    assert probe.rows == 150 and {name: one.measured for name, one in found.items()} == {name: result.tally.computed.get(name, 0) for name in found}
    assert found["score"].rows == 396, "the plan knows that four rows cannot be read"
    assert found["flaky"].rows == round(found["flaky"].measured / 150 * 400)
    for one in found.values():
        if one.rows_per_s is not None and one.seconds is not None:
            assert one.seconds == pytest.approx(one.rows / one.rows_per_s, rel=0.05, abs=0.06)
    assert found["score"].engine_hours_per_million is None


def test_a_captioner_costs_what_its_engine_takes(tmp_path: Path) -> None:
    recipe = build_recipe(caption_recipe(tmp_path / "pictures"))
    told: list[str] = []
    probe = make_probe(recipe, make_plan(recipe, None), 10, 3.0, told.append)
    reading, caption = probe.stages
    assert caption.measured == 10 and caption.rows == 30 and reading.engine_hours_per_million is None
    assert caption.model_seconds is not None and 30 * 0.02 <= caption.model_seconds < 30 * 0.3
    assert caption.engine_hours_per_million == pytest.approx(caption.model_seconds / 30 * 1e6 / 3600, rel=0.1)
    assert caption.price_per_million == pytest.approx(3.0 * caption.engine_hours_per_million, rel=0.01)
    assert caption.tokens_per_row is not None and 8 <= caption.tokens_per_row[1] <= 15
    assert caption.answer_tokens_per_s == pytest.approx(caption.tokens_per_row[1] * 30 / caption.model_seconds, rel=0.15)
    assert told[0] == "probe: starting model mllm" and len(told) == 2


def test_what_starts_once_in_a_run_is_not_taken_for_the_pace_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_to_load() -> Any:
        time.sleep(1.5)
        return clip_tokenizer()

    clip_tokenizer = caption._clip_tokenizer
    monkeypatch.setattr(caption, "_clip_tokenizer", functools.cache(slow_to_load))
    recipe = build_recipe(caption_recipe(tmp_path / "pictures", 12, 0.01))
    found = make_probe(recipe, make_plan(recipe, None), 10).stages[1]
    assert found.measured == 10 and found.seconds is not None and found.seconds < 1.5


def test_a_resolve_that_needs_more_rows_than_are_sent_through_first_does_not_end_the_probe(tmp_path: Path) -> None:
    raw = caption_recipe(tmp_path / "pictures", 24, 0.0)
    recipe = build_recipe({**raw, "stages": [{"balance": {"metadata": {"min_count": 20, "min_pmi": None}}}, "read_images", "caption"]})
    assert [one.measured for one in make_probe(recipe, make_plan(recipe, None), 24).stages if one.stage == "caption"] == [24]


def test_the_estimate_is_kept_and_stands_in_the_report(tmp_path: Path) -> None:
    given, out = tmp_path / "recipe.json", tmp_path / "run"
    given.write_text(json.dumps(caption_recipe(tmp_path / "pictures")))
    command = ["plan", str(given), "--out", str(out), "--probe", "10", "--price-per-hour", "2"]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "120", "NO_COLOR": "1"})
    assert done.exit_code == 0, done.stderr
    assert "a probe of 10 rows" in done.stdout and "engine-hours" in done.stdout and "at 2 an hour" in done.stdout
    assert [path.name for path in out.iterdir() if not path.name.startswith("lock")] == ["run.json"]
    with pytest.raises(RecipeError, match="only its estimate"):
        open_run(out)
    recipe = build_recipe(json.loads(given.read_text()))
    assert make_plan(recipe, out).new, "an estimate is no run"
    run(recipe, out, LOCAL)
    kept = Store(place_of(out)).read_run()
    assert kept is not None and kept.parts == [30] and [one["stage"] for one in kept.probe["stages"]] == ["read_images", "caption"]
    page = (out / "report.html").read_text()
    assert "Estimated before, and taken" in page and page.count("<td><bdi>caption</bdi></td>") == 2


def test_an_estimate_is_not_kept_where_another_run_works_or_another_input_lies(tmp_path: Path) -> None:
    recipe = toy_recipe()
    probe = make_probe(recipe, make_plan(recipe, None), 20)
    keep_probe(recipe, tmp_path / "run", probe)
    with pytest.raises(RecipeError, match="another input"):
        keep_probe(toy_recipe(300), tmp_path / "run", probe)
    lock = RunLock(place_of(tmp_path / "busy"))
    lock.acquire()
    try:
        with pytest.raises(Exception, match="process"):
            keep_probe(recipe, tmp_path / "busy", probe)
    finally:
        lock.release()
