"""What `plan` foretells against what a run then does, on the toy chain."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pipeline import registry
from pipeline.errors import RecipeError
from pipeline.lock import RunLock
from pipeline.plan import Plan, make_plan
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, RunResult, run
from schemas.outcome import FailureCode

ROWS, PER_PART = 400, 100
LOCAL = RunOptions(executor="local", workers=1)


@pytest.fixture(autouse=True)
def toys() -> None:
    registry.import_file(str(Path(__file__).parent / "toys.py"))


def recipe_of(stages: list[dict], **top):
    return build_recipe({"name": "toy", "input": {"kind": "numbers", "rows": ROWS, "rows_per_part": PER_PART}, "stages": stages, **top})


def chain(score: dict | None = None, score2: dict | None = None, extra: list[dict] | None = None) -> list[dict]:
    """Filter, resolve behind it, two more stages: a change of the first filter goes through the resolve."""
    first = {"score": {"min": 100, **(score or {})}}
    last = {"score2": {"use": "score", "factor": 5, "min": 200, **(score2 or {})}}
    return [first, *(extra or []), {"first_url": {}}, {"flaky": {}}, last]


def planned_and_run(out: Path, stages: list[dict], **top) -> tuple[Plan, RunResult]:
    plan = make_plan(recipe_of(stages, **top), out)
    return plan, run(recipe_of(stages, **top), out, LOCAL)


def check_bounds(plan: Plan, result: RunResult) -> None:
    """Every number lies in its bounds; a resolve that runs was foretold, one said not to run did not."""
    counts = result.view.counts()
    for stage in plan.stages:
        computed = result.tally.computed.get(stage.name, 0)
        assert stage.rows[0] <= computed <= stage.rows[1], (stage, computed)
        assert stage.kept[0] <= counts[stage.name]["kept"] <= stage.kept[1], (stage, counts[stage.name])
        assert stage.calls[0] <= result.tally.calls.get(stage.name, 0) <= stage.calls[1], stage
        assert (stage.name in result.tally.resolves) <= bool(stage.resolve), stage
        if stage.resolve == "runs":
            assert stage.name in result.tally.resolves


def by_name(plan: Plan) -> dict:
    return {stage.name: stage for stage in plan.stages}


def test_new_run_counts_the_input_and_gives_upper_bounds(tmp_path):
    plan, result = planned_and_run(tmp_path / "run", chain())
    assert plan.new and plan.rows == ROWS and plan.parts == ROWS // PER_PART
    readable = ROWS - 4  # rows 96, 193, ... cannot be read
    stages = by_name(plan)
    assert stages["score"].rows == (readable, readable)
    assert stages["flaky"].rows == (0, readable)
    assert stages["score"].calls == (8, 8)  # 4 parts of 99 rows in batches of 64
    check_bounds(plan, result)


def test_nothing_to_do_and_nothing_written(tmp_path):
    out = tmp_path / "run"
    run(recipe_of(chain()), out, LOCAL)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in out.rglob("*")}
    plan = make_plan(recipe_of(chain()), out)
    assert plan.nothing_to_do
    assert all(stage.why == ["nothing to do"] for stage in plan.stages)
    changed = make_plan(recipe_of(chain(score={"min": 0, "factor": 7})), out)
    assert not changed.nothing_to_do
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in out.rglob("*")} == before


def test_plan_needs_no_lock(tmp_path):
    out = tmp_path / "run"
    run(recipe_of(chain()), out, LOCAL)
    lock = RunLock(out)
    lock.acquire()
    try:
        plan = make_plan(recipe_of(chain()), out)
    finally:
        lock.release()
    assert any("a run works in this folder now" in note for note in plan.notes)


CASES = [
    # change, stages whose rows must be foretold exactly, stage -> words that must stand in its reasons
    ({"score": {"min": 150}}, ["score", "flaky"], {"score": "only the verdict changes: min 100 -> 150"}),
    ({"score": {"min": 50}}, ["score", "flaky"], {"score": "min 100 -> 50", "flaky": "revived by looser score.min 100 -> 50"}),
    ({"score": {"factor": 7}}, ["score"], {"score": "parameter factor changed 3 -> 7 (compute)"}),
    ({"score2": {"min": 0}}, ["score", "flaky", "score2"], {"score2": "only the verdict changes: min 200 -> 0", "flaky": "nothing to do"}),
    ({"score2": {"factor": 9}}, ["score", "flaky", "score2"], {"score2": "parameter factor changed 5 -> 9 (compute)"}),
    ({"extra": [{"score3": {"use": "score", "factor": 11, "min": 300}}]}, ["score", "score3"], {"score3": "new stage", "score": "nothing to do"}),
]


@pytest.mark.parametrize(("change", "exact", "words"), CASES)
def test_foretold_rows_are_computed(tmp_path, change, exact, words):
    run(recipe_of(chain()), tmp_path / "run", LOCAL)
    plan, result = planned_and_run(tmp_path / "run", chain(**change))
    check_bounds(plan, result)
    stages = by_name(plan)
    for name in exact:
        assert stages[name].rows == (result.tally.computed.get(name, 0),) * 2
    for name, text in words.items():
        assert text in "; ".join(stages[name].why)


def test_loosening_before_a_resolve_moves_its_keepers_and_plan_knows_them(tmp_path):
    """Tightening kills keepers: their duplicates come back below the resolve and must be computed there."""
    run(recipe_of(chain()), tmp_path / "run", LOCAL)
    plan, result = planned_and_run(tmp_path / "run", chain(score={"min": 400}))
    flaky = by_name(plan)["flaky"]
    assert flaky.rows[0] == flaky.rows[1] == result.tally.computed["flaky"] > 0
    assert "no longer held back by first_url" in "; ".join(flaky.why)
    assert by_name(plan)["first_url"].resolve == "runs"
    assert by_name(plan)["first_url"].kept == (result.view.counts()["first_url"]["kept"],) * 2


def test_part_of_a_run_is_missing(tmp_path):
    out = tmp_path / "run"
    run(recipe_of(chain()), out, LOCAL)
    for kind in ("values", "verdicts"):
        (out / kind / "score2" / "part-00003.parquet").unlink()
    plan, result = planned_and_run(out, chain())
    assert by_name(plan)["score2"].rows == (result.tally.computed["score2"],) * 2
    assert 0 < result.tally.computed["score2"] <= PER_PART
    assert "not computed yet" in "; ".join(by_name(plan)["score2"].why)


def test_passing_failures_after_a_stop_are_told(tmp_path):
    """Parts that failed nearly throughout for a passing reason are tried again unasked; plan says so, with the number."""
    book = tmp_path / "book.json"
    urls = [f"u{i}" for i in range(ROWS)]
    book.write_text("{" + ", ".join(f'"{url}": "{FailureCode.TIMEOUT}"' for url in urls) + "}")
    stages = [{"flaky": {"book": str(book)}}]
    budgets = {"flaky": {"max_share": 1.0, "max_identical": 10**6}}
    first = run(recipe_of(stages, budgets=budgets), tmp_path / "run", LOCAL)
    assert first.view.counts()["flaky"]["failed:timeout"] == ROWS - 4
    plan = make_plan(recipe_of(stages, budgets=budgets), tmp_path / "run")
    assert by_name(plan)["flaky"].rows == (ROWS - 4, ROWS - 4)
    assert "tried again" in by_name(plan)["flaky"].why[0]
    book.write_text("{}")
    again = run(recipe_of(stages, budgets=budgets), tmp_path / "run", LOCAL)
    assert again.tally.computed["flaky"] == ROWS - 4


def test_another_input_is_refused_as_by_run(tmp_path):
    run(recipe_of(chain()), tmp_path / "run", LOCAL)
    other = build_recipe({"name": "toy", "input": {"kind": "numbers", "rows": 50, "rows_per_part": 10}, "stages": chain()})
    with pytest.raises(RecipeError, match="another input"):
        make_plan(other, tmp_path / "run")


def test_barriers_and_groups(tmp_path):
    plan = make_plan(recipe_of(chain()), None)
    assert [barrier.stage for barrier in plan.barriers] == ["first_url"]
    assert plan.barriers[0].reads == ["source.url"]
    assert plan.barriers[0].waiting == ["flaky", "score2"]
    assert plan.groups == [["score"], ["first_url", "flaky", "score2"]]
    assert by_name(plan)["score"].reads == {"sample_id": "source.sample_id", "value": "source.value"}


@pytest.mark.parametrize("decide", ["early", "late"])
def test_random_changes_stay_in_their_bounds(tmp_path, decide):
    """Random thresholds, compute parameters, stages put in and taken out: never a number outside what plan said."""
    draw = random.Random(7)
    exact = total = 0
    for _ in range(8):
        extra = [{"score3": {"use": "score", "factor": draw.choice([11, 13]), "min": draw.choice([0, 300])}}] if draw.random() < 0.4 else []
        stages = chain(
            {"min": draw.choice([0, 50, 100, 300, 500]), "factor": draw.choice([3, 3, 3, 7])},
            {"min": draw.choice([0, 200, 400])},
            extra,
        )
        if draw.random() < 0.2:
            stages = [stage for stage in stages if "first_url" not in stage]
        plan, result = planned_and_run(tmp_path / "run", stages, decide=decide)
        check_bounds(plan, result)
        exact += sum(stage.rows[0] == stage.rows[1] for stage in plan.stages)
        total += len(plan.stages)
    assert exact / total > 0.6
