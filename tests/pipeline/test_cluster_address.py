"""The cluster that RAY_ADDRESS names is taken as if --address named it, but by the local executor."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import Fatal, RecipeError
from pipeline.run import RunOptions, cluster_here, run
from tests.pipeline.helpers import make_recipe


@pytest.mark.parametrize("value, taken", [("", None), ("http://head:8265", None), ("10.0.0.1:6379", "10.0.0.1:6379"), ("auto", "auto")])
def test_addresses_of_the_jobs_api_are_none(monkeypatch: pytest.MonkeyPatch, value: str, taken: str | None) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert cluster_here() == taken


def test_a_cluster_that_the_environment_names_must_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(RecipeError, match="no Ray cluster answers"):
        run(make_recipe(["flaky"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    near = run(make_recipe(["flaky"]), tmp_path / "run", RunOptions(executor="local"))
    assert sum(near.view.parts) > 0


def test_a_ray_that_does_not_start_in_time_is_told_with_the_next_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")

    def late(**_: object) -> None:  # as Ray 2 does it, with no class of its own, on a machine too busy to start a node in 30 s
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(Fatal, match="run again, or with --executor local"):
        run(make_recipe(["flaky"]), tmp_path / "run", RunOptions(executor="ray"))
