"""The order of tasks: the deepest part that is ready, then the first of the input; every part once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import registry
from pipeline.chain import Chain
from pipeline.executor import Done, LocalExecutor
from pipeline.groups import make_groups
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run
from pipeline.schedule import Schedule
from pipeline.store import Store

PARTS = 12


@pytest.fixture(autouse=True)
def toys() -> None:
    registry.import_file(str(Path(__file__).with_name("toys.py")))


def recipe():
    stages = [{"score": {}}, {"first_url": {}}, {"flaky": {}}]
    return build_recipe({"name": "toy", "input": {"kind": "numbers", "rows": PARTS * 3, "rows_per_part": 3}, "stages": stages})


def test_parts_run_in_the_order_of_the_input_on_both_sides_of_a_barrier(tmp_path):
    told: list[tuple[str, int]] = []

    def notify(kind, what):
        if kind in ("start", "resolve"):
            told.append((kind, what.part if kind == "start" else -1))

    run(recipe(), tmp_path / "run", RunOptions(executor="local"), notify)
    barrier = told.index(("resolve", -1))
    assert told[:barrier] == told[barrier + 1 :] == [("start", part) for part in range(PARTS)]


class Backwards(LocalExecutor):
    """Takes four tasks at a time and gives back the last first, as a cluster may."""

    capacity = 4

    def __init__(self, env, groups):
        super().__init__(env, groups)
        self.waiting: list = []

    def submit(self, task):
        self.waiting.append(task)

    def wait(self) -> list[Done]:
        super().submit(self.waiting.pop())
        return super().wait()


def test_every_part_runs_once_also_where_answers_come_out_of_order(tmp_path):
    from pipeline.environment import Environment

    run(recipe(), tmp_path / "run", RunOptions(executor="local", jobs=False))
    for folder in ("values/score", "values/flaky", "verdicts/score", "verdicts/first_url", "verdicts/flaky", "resolved/first_url"):
        for path in (tmp_path / "run" / folder).iterdir():
            path.unlink()
    chain, store = Chain(recipe()), Store(tmp_path / "run")
    groups, started = make_groups(chain), []
    schedule = Schedule(chain, store, [3] * PARTS, groups, notify=lambda kind, what: started.append((what.group, what.part)) if kind == "start" else None)
    schedule.run(Backwards(Environment(chain, store), groups))
    assert sorted(started) == [(group, part) for group in range(len(groups)) for part in range(PARTS)]
    assert all(place == len(groups) for place in schedule.position)
