"""recut: the dataset of a changed recipe beside the old one equals that of a fresh run, byte for byte, without a measurement."""

from __future__ import annotations

import json
import multiprocessing
import random
import shlex
import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner, Result

from pipeline import registry
from pipeline.cli import app
from pipeline.forgotten import Forgotten
from pipeline.recipe import Recipe, build_recipe
from pipeline.recut import prepare_recut
from pipeline.run import RunOptions, run
from stages.shards.verify import verify_dataset
from tests.pipeline.helpers import calls
from tests.pipeline.test_random_sequences import TOYS, State, tree_digest

PICTURES = Path(__file__).parents[1] / "stages/shards/toys.py"
LOCAL = RunOptions(executor="local")


def pairmill(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160", "NO_COLOR": "1"})


def late(state: State, log: Path | None = None) -> Recipe:
    """The recipe in which every row is measured whatever the rules before say: then no row lacks a measurement when keepers move."""
    return build_recipe({**state.recipe(log).resolved, "decide": "late"})


def recut_here(state: State, sets: list[str], out: Path) -> None:
    changed = prepare_recut(str(state.folder / "run"), sets, str(out))
    result = run(changed.recipe, out, RunOptions(executor="local", measures=False), facts=changed.chain.facts)
    assert sum(result.tally.computed.values()) == 0


@pytest.mark.parametrize("seed", range(2))
def test_equals_a_fresh_run_of_the_changed_recipe(tmp_path: Path, seed: int) -> None:
    """Thresholds go up and down, so that keepers move in the resolve between."""
    draw = random.Random(seed)
    old = State(tmp_path, 200, 700, 150)
    run(late(old, tmp_path / "log"), tmp_path / "run", LOCAL)
    calls(tmp_path / "log")
    before = tree_digest(tmp_path / "run")
    for nth in range(2):
        score, size, last = draw.choice([0, 200, 500]), draw.choice([300, 700, 10**6]), draw.choice([0, 150, 600])
        other = tmp_path / f"other{nth}"
        recut_here(old, [f"score.min={score}", f"fetch.max_bytes={size}", f"score2.min={last}"], other)
        assert not calls(tmp_path / "log")
        fresh = State(tmp_path / f"fresh{nth}", score, size, last)
        fresh.folder.mkdir()
        run(late(fresh), fresh.folder / "run", LOCAL)
        assert tree_digest(other / "dataset") == tree_digest(fresh.folder / "run" / "dataset")
        assert list(verify_dataset(other / "dataset", decode=False)) == []
    assert tree_digest(tmp_path / "run") == before


def _child(state: State, sets: list[str], out: Path) -> None:
    registry.import_file(str(TOYS))
    recut_here(state, sets, out)


def test_killed_and_repeated_it_goes_on(tmp_path: Path) -> None:
    old, sets = State(tmp_path, 0, 10**6, 0), ["score.min=200", "score2.min=150"]
    run(late(old), tmp_path / "run", LOCAL)
    draw = random.Random(0)
    killed = 0
    for most in (0.25, 0.12, 0.06, 0.03, 0.015, 0.008):
        if killed == 3:
            break
        child = multiprocessing.get_context("forkserver").Process(target=_child, args=(old, sets, tmp_path / "other"))
        child.start()
        limit = time.time() + 60
        while not (tmp_path / "other" / "lock").exists() and child.is_alive() and time.time() < limit:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, most))
        killed += child.is_alive()
        child.kill()
        child.join()
        if child.exitcode == 0:  # it was done before: once more, and sooner
            shutil.rmtree(tmp_path / "other")
    assert killed
    recut_here(old, sets, tmp_path / "other")
    recut_here(old, sets, tmp_path / "unbroken")
    assert tree_digest(tmp_path / "other" / "dataset") == tree_digest(tmp_path / "unbroken" / "dataset")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A finished run of small real images, of which `rate` kept those above 0.3 and `again` measured only these."""
    stages = ["store_images", {"rate": {"min": 0.3}}, {"again": {"use": "rate"}}]
    recipe = {"name": "pictures", "input": {"kind": "pictures", "rows": 60}, "stages": stages, "jobs": ["write_shards", "report"]}
    (tmp_path / "pictures.yaml").write_text(yaml.safe_dump(recipe))
    done = pairmill("run", str(tmp_path / "pictures.yaml"), "--import", str(PICTURES), "--out", str(tmp_path / "run"), "--executor", "local", "--no-jobs")
    assert done.exit_code == 0, done.output
    return tmp_path / "run"


def test_the_command_writes_a_dataset_that_verify_passes(pictures: Path, tmp_path: Path) -> None:
    more = ("--import", str(PICTURES), "--executor", "local")
    done = pairmill("recut", str(pictures), "--set", "again.min=0.4", "--out", str(tmp_path / "other"), *more, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["rows"]["kept"] == 16 and list(told["jobs"]) == ["write_shards"] and all(stage["computed"] == 0 for stage in told["stages"])
    assert pairmill("verify", str(tmp_path / "other")).exit_code == 0
    tar = next((pictures / "blobs" / "store_images").glob("*.tar"))
    assert (tmp_path / "other" / "blobs" / "store_images" / tar.name).stat().st_ino == tar.stat().st_ino
    again = pairmill("recut", str(pictures), "--set", "again.min=0.5", "--out", str(tmp_path / "other"), *more, "--json")
    assert json.loads(again.stdout)["rows"]["kept"] == 9


def test_what_it_refuses(pictures: Path, tmp_path: Path) -> None:
    def told(*arguments: str) -> str:
        result = pairmill("recut", str(pictures), "--import", str(PICTURES), *arguments)
        assert result.exit_code == 2 and result.stdout == "", result.output
        return " ".join(result.stderr.split())

    missing = told("--set", "rate.min=0.1", "--out", str(tmp_path / "other"))
    assert "17 rows at again" in missing and f"pairmill run {pictures}/run.json --out {pictures} --no-jobs --set rate.min=0.1" in missing
    assert not (tmp_path / "other").exists()
    assert "the input cannot be changed" in told("--set", "input.rows=50", "--out", str(tmp_path / "other"))
    assert "not into it" in told("--out", str(pictures / "other")) and "not into it" in told("--out", str(pictures))
    assert "both in one bucket" in told("--out", "s3://bucket/other")


def test_a_directory_of_an_earlier_state_is_told_and_the_command_that_is_named_works(pictures: Path, tmp_path: Path) -> None:
    more = ("--import", str(PICTURES), "--executor", "local")
    other = tmp_path / "other"
    assert pairmill("recut", str(pictures), "--set", "again.min=0.4", "--out", str(other), *more).exit_code == 0
    loose = ("recut", str(pictures), "--set", "rate.min=0.1", "--set", "again.min=0.1")
    missing = pairmill(*loose, "--out", str(tmp_path / "new"), *more)
    command = shlex.split(missing.stderr.strip().splitlines()[-1])[1:]  # measures what is missing, by the recipe of the run
    assert pairmill(*command, *more).exit_code == 0
    record = (pictures / "run.json").read_text()
    (tmp_path / "run.json").write_text(record.replace('"models": {}', '"models": {"m": {"kind": "http", "api_key": "***"}}'))
    masked = pairmill("run", str(tmp_path / "run.json"), "--out", str(tmp_path / "masked"), *more)
    assert masked.exit_code == 2 and "the secret in models.m.api_key is not kept there" in " ".join(masked.stderr.split())
    stale = pairmill(*loose, "--out", str(other), *more)
    assert stale.exit_code == 2 and "17 rows at again" in " ".join(stale.stderr.split()) and "name a new folder" in stale.stderr
    assert pairmill(*loose, "--out", str(tmp_path / "new"), *more).exit_code == 0


def test_what_is_forgotten_stays_out_of_the_directory_beside(pictures: Path, tmp_path: Path) -> None:
    more = ("--import", str(PICTURES), "--executor", "local")
    ids = pq.read_table(pictures / "values/source/part-00000.parquet")["sample_id"].to_pylist()
    half = tmp_path / "half"  # as a kill leaves it: files, and no run.json
    assert pairmill("recut", str(pictures), "--set", "again.min=0.4", "--out", str(half), *more).exit_code == 0
    shutil.copytree(half, tmp_path / "whole")
    (half / "run.json").unlink()
    assert pairmill("forget", str(pictures), "--id", ids[0].hex(), *more).exit_code == 0
    listed = Forgotten.of_run(pictures)
    listed.open = True  # as a kill leaves it
    listed.write(pictures)
    assert "a removal of rows was interrupted here" in pairmill("recut", str(pictures), "--out", str(tmp_path / "early"), *more).stderr
    listed.open = False
    listed.write(pictures)
    old = pairmill("recut", str(pictures), "--set", "again.min=0.4", "--out", str(tmp_path / "whole"), *more)
    assert old.exit_code == 2 and "rows were forgotten in" in old.stderr
    for out in (half, tmp_path / "new"):
        assert pairmill("recut", str(pictures), "--set", "again.min=0.4", "--out", str(out), *more).exit_code == 0
        assert (out / "forgotten.json").read_bytes() == (pictures / "forgotten.json").read_bytes()
        assert ids[0] not in pq.read_table(out / "values/source/part-00000.parquet")["sample_id"].to_pylist()
