"""A cluster of two Ray nodes that share no disk, a run directory on an S3 server, jobs through Ray's jobs API, and a node that goes on the way."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.recipe import load_recipe
from pipeline.run import RunOptions, run
from stages.demo.world import World, build_world
from stages.demo.world_server import WorldServer, free_port
from tests.e2e.killing import RECIPE, tree_digest
from tests.e2e.ray_cluster import RayCluster, until
from tests.pipeline.s3_server import BUCKET, S3Server, running

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # starts of Ray take their time on a busy machine
PATIENCE_S = 12  # slow hosts of the rendered web take 20 s, others as long as a busy machine makes them
TABLE = "s3://bucket/in/urls.parquet"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patch:
        yield from running(patch)


@pytest.fixture(scope="module")
def world(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A rendered web that is served; its table of URLs lies on the S3 server too."""
    world = build_world(tmp_path_factory.mktemp("world"), 600, base_url=f"http://127.0.0.1:{free_port()}")
    s3.client.put_object(Bucket=BUCKET, Key="in/urls.parquet", Body=world.urls.read_bytes())
    with WorldServer(world.folder, world.port):
        yield world


@pytest.fixture(scope="module")
def cluster(world: World) -> Iterator[RayCluster]:
    cluster = RayCluster()
    try:
        yield cluster
    finally:
        cluster.close()


@dataclass
class Job:
    """A run of a recipe as a job of the cluster, one of whose nodes goes on the way."""

    s3: S3Server
    cluster: RayCluster
    out: str

    def written(self, beginning: str, since: int = 0) -> set[str]:
        """Names under `beginning` in the run directory that were put, from request number `since` on."""
        return {r.name for r in self.s3.requests[since:] if r.method == "PUT" and r.name.startswith(f"{self.out}/{beginning}")}

    def commits(self) -> dict[str, str]:
        """Committed part files and images: name -> version."""
        found = {}
        for kind in ("values", "blobs"):
            for page in self.s3.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{self.out}/{kind}/"):
                found |= {entry["Key"]: f"{entry['ETag']} {entry['LastModified']}" for entry in page.get("Contents", [])}
        return found

    def run(self, recipe: dict[str, Any], folder: Path, moment: Callable[[str], bool]) -> None:
        """Submit the recipe with its file as working directory; kill a node when `moment` says so of it, and wait for the end."""
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        node = self.cluster.add_node()
        self.s3.requests.clear()
        command = [sys.executable, "-m", "pipeline.cli", "run", "recipe.yaml", "--out", self.s3.place(self.out), "--set", f"input.table={TABLE}"]
        with self.cluster.submit([*command, "--progress", "json"], [f"--working-dir={folder}"]) as job:
            try:
                came = until(lambda: job.poll() is not None or moment(node), 360) and job.poll() is None
                self.cluster.kill(node)
                before, place = self.commits(), len(self.s3.requests)
                told = job.communicate(timeout=300)[0]
            finally:
                job.kill()
        assert came, f"the moment to kill did not come\n{told}"
        assert job.returncode == 0, told
        assert '"executor": "ray"' in told, "the cluster that runs the job is used without being named"
        assert before and before.items() <= self.commits().items(), "a committed file was written again"
        assert not self.written("", place) & set(before), "a committed file was computed again"


def assert_equal(found: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    """The same files with the same bytes; where not, the rejected rows that differ are told."""
    other = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    told = []
    for name in other:
        if name.startswith("rejected/") and name in found and name in wanted:
            one, two = (pq.read_table(io.BytesIO(files[name])).select(["url", "status", "stage", "reason", "detail"]).to_pylist() for files in (found, wanted))
            told += [(a, b) for a, b in zip(one, two, strict=False) if a != b][:5]
    assert not other, f"{other}: {told}"


def near(recipe: dict[str, Any], world: World, folder: Path) -> dict[str, bytes]:
    """The dataset of an unbroken run on a disk, in the plain loop."""
    (folder / "near.yaml").write_text(yaml.safe_dump(recipe))
    found = run(load_recipe(str(folder / "near.yaml"), [f"input.table={world.urls}"]), folder / "near", RunOptions("local")).view.dataset
    return {name: (found / name).read_bytes() for name in tree_digest(found)}


def test_a_node_that_goes_during_a_download_changes_no_byte(s3: S3Server, world: World, cluster: RayCluster, tmp_path: Path) -> None:
    recipe = {
        "name": "small",
        "input": {"kind": "url_table", "table": None, "rows_per_part": 30, "limit": 240},
        "stages": ["url_dup", {"download": {"allow_private": True, "timeout_s": PATIENCE_S, "retries": 0}}],
        "jobs": [{"write_shards": {"max_samples": 60, "parts_per_group": 4}}],
    }
    job = Job(s3, cluster, "small")
    job.run(recipe, tmp_path, lambda node: 2 in cluster.computes(node) and bool(job.written("values/download/")))
    assert_equal(s3.files("small/dataset"), near(recipe, world, tmp_path))


@pytest.mark.parametrize("stage", ["download", "clip_score", "write_shards"])
def test_a_node_that_goes_changes_no_byte(s3: S3Server, world: World, cluster: RayCluster, tmp_path: Path, stage: str) -> None:
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe["input"]["rows_per_part"] = 50
    next(entry["download"] for entry in recipe["stages"] if "download" in entry)["timeout_s"] = PATIENCE_S
    places = {entry if isinstance(entry, str) else next(iter(entry)): at for at, entry in enumerate(recipe["stages"], 1)}
    job = Job(s3, cluster, f"run-{stage}")

    def moment(node: str) -> bool:
        if stage == "write_shards":
            return bool(job.written("jobs/write_shards/")) and cluster.works(node, "ray::_work_job")
        return places[stage] in cluster.computes(node) and bool(job.written(f"values/{stage}/"))

    job.run(recipe, tmp_path, moment)
    assert_equal(s3.files(f"{job.out}/dataset"), near(recipe, world, tmp_path))
