"""A full disk, with a real small disk: the run stops and names it, leaves no half file, and goes on once there is space."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import registry
from pipeline.blobs import BlobWriter
from pipeline.errors import Fatal, RecipeError
from pipeline.files import commit_bytes
from pipeline.lock import RunLock
from pipeline.recipe import Recipe, build_recipe
from pipeline.run import RunOptions, open_run, run

PICTURES = Path(__file__).parents[1] / "stages" / "shards" / "toys.py"
LOCAL = RunOptions(executor="local")
SIZE, FIRST, STEP = 4 << 20, 12 << 10, 60 << 10


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def leave(disk: Path, room: int) -> None:
    """Fill the disk so that about `room` bytes are free."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - room))


def half_files(root: Path) -> list[str]:
    return [path.name for path in root.rglob("*") if path.name.startswith(".tmp-") or path.name == "lock"]


def pictures() -> Recipe:
    registry.import_file(str(PICTURES))
    return build_recipe(
        {
            "name": "pictures",
            "input": {"kind": "pictures", "rows": 200, "rows_per_part": 50},
            "stages": [{"store_images": {}}, {"rate": {"min": 0.1}}],
            "jobs": [{"write_shards": {"max_samples": 30, "parts_per_group": 2}}],
        }
    )


def test_it_stops_wherever_the_disk_is_full_and_goes_on_with_more_space(disk: Path, tmp_path: Path) -> None:
    fresh = run(pictures(), tmp_path / "fresh", LOCAL)
    told = rf"disk full while writing {disk}/run/(\S+): [\d,]+ of {SIZE:,} bytes are free on {disk} .*make space, then run the same"
    stopped: list[str] = []
    room = FIRST
    while True:
        leave(disk, room)
        try:
            again = run(pictures(), disk / "run", LOCAL)
            break
        except Fatal as error:
            found = re.search(told, str(error))
            assert found, str(error)
            room = room + STEP if stopped[-1:] == [found[1]] else FIRST
            stopped.append(found[1])
        assert half_files(disk / "run") == []
        assert len(stopped) < 100
    kinds = {name.partition("/")[0] for name in stopped}
    assert {"values", "blobs"} <= kinds and kinds & {"jobs", "dataset"}, stopped
    assert again.view.state_digest() == fresh.view.state_digest()
    assert tree(disk / "run" / "dataset") == tree(tmp_path / "fresh" / "dataset")


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_write_that_stops_short_is_not_committed(disk: Path) -> None:
    """The first write of a large file fills the disk without an error and tells how far it came."""
    (disk / "a").write_bytes(b"before")
    with pytest.raises(Fatal, match=rf"disk full while writing {disk}/a: "):
        commit_bytes(disk / "a", b"x" * 2 * SIZE)
    assert tree(disk) == {"a": b"before"}


def test_a_tar_of_images_that_does_not_fit_leaves_nothing(disk: Path) -> None:
    writer = BlobWriter(disk / "blobs", 0)
    with pytest.raises(Fatal, match="disk full"):
        for number in range(20):
            writer.add(f"{number:032x}", "jpg", b"x" * 300_000)
        writer.finish()
    writer.abort()
    assert tree(disk) == {}


def test_no_run_starts_without_room_for_its_lock(disk: Path) -> None:
    leave(disk, 0)
    with pytest.raises(Fatal, match=rf"disk full while writing {disk}"):
        RunLock(disk).acquire()
    assert {path.name for path in disk.iterdir()} <= {"ballast", "lock.turn"}  # the latter is empty: who takes it has its turn
    (disk / "ballast").unlink()
    lock = RunLock(disk)
    lock.acquire()
    lock.release()


def test_an_out_that_is_no_folder_is_a_wrong_option(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("url,alt_text\n")
    recipe = build_recipe({"name": "toy", "input": {"kind": "url_table", "table": str(tmp_path / "pairs.csv")}, "stages": ["url_dup"]})
    for wrong, why in ((tmp_path / "pairs.csv", "Not a directory"), (Path("/proc/none"), "No such file or directory")):
        with pytest.raises(RecipeError, match=f"--out {wrong}: cannot be used: {why}.*; name a folder that you may write to"):
            run(recipe, wrong, LOCAL)
    with pytest.raises(RecipeError, match="no run here .this is no folder."):
        open_run(tmp_path / "pairs.csv")
