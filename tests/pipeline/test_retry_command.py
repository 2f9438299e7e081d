"""`pairmill retry`: only the rows asked for and what follows from them, good tars untouched, and the dataset of a run in which they had
succeeded at once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.pipeline.helpers import calls
from tests.pipeline.outage_web import OutageWeb, pairmill, tree_digest, write_recipe
from tests.stages.conftest import jpeg_bytes

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
TOYS = ["--import", str(HERE / "toys.py")]
ROWS = 240


class SickWeb(OutageWeb):
    """`sick` rows answer with status 503, `gone` ones with 404."""

    sick: frozenset[int] = frozenset()
    gone: frozenset[int] = frozenset()

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        row = int(path.strip("/").removesuffix(".jpg"))
        if row in self.sick or row in self.gone:
            writer.write(self.http(b"", "503 Busy" if row in self.sick else "404 Not Found"))
            await writer.drain()
        else:
            await super()._answer(path, writer)


@pytest.fixture
def web() -> Iterator[SickWeb]:
    server = SickWeb([jpeg_bytes(8, 8, seed) for seed in range(ROWS)])
    yield server
    server.close()


def tars(out: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in (out / "blobs" / "download").iterdir()}


def test_the_real_download_after_503s(tmp_path: Path, web: SickWeb) -> None:
    """Row 7 is gone for good, rows 50 to 69 are down for a while; the parts without them are not touched."""
    recipe = write_recipe(tmp_path, ROWS, lambda row: web.url(f"/{row}.jpg"), 40)
    out, plain = tmp_path / "run", ["--executor", "local"]
    web.gone, web.sick = frozenset({7}), frozenset(range(50, 70))
    assert pairmill("run", recipe, "--out", out, *plain).exit_code == 0
    web.sick = frozenset()
    web.asked.clear()
    held, kept = tars(out), {path: path.stat().st_mtime_ns for path in (out / "values").rglob("part-*.parquet")}

    dry = pairmill("retry", out, "--stage", "download", "--reason", "timeout,http_5xx", "--dry-run")
    assert dry.exit_code == 0 and "download: 20 rows would be tried again (20 http_5xx)" in dry.stdout
    assert not web.asked

    again = pairmill("retry", out, "--stage", "download", "--reason", "timeout,http_5xx", "--set", "download.timeout_s=30", *plain, "--json")
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["retry"] == {"download": {"tried": 20, "have a value now": 20}}
    assert set(web.asked) == {f"/{row}.jpg" for row in range(50, 70)}
    assert {name: tars(out)[name] for name in held} == held and len(tars(out)) == len(held) + 1
    rewritten = {path for path, when in kept.items() if path.stat().st_mtime_ns != when}
    assert rewritten == {out / "values" / "download" / "part-00001.parquet"}

    fresh = pairmill("run", recipe, "--out", tmp_path / "fresh", *plain)
    assert fresh.exit_code == 0
    assert tree_digest(out / "dataset") == tree_digest(tmp_path / "fresh" / "dataset")
    nothing = pairmill("retry", out)
    assert nothing.exit_code == 0 and "nothing to try again" in nothing.stdout


def test_what_follows_from_a_row_and_that_the_next_run_leaves_it(tmp_path: Path) -> None:
    """Through a resolve and a later stage, with calls counted; a row that fails again is not tried by the next plain run."""
    book, log, out = tmp_path / "book.json", tmp_path / "calls", tmp_path / "run"
    book.write_text(json.dumps({"u5": "timeout", "u90": "dns", "u33": "http_4xx", "u16": "timeout"}))
    stages = [{"flaky": {"book": str(book), "calls": str(log)}}, {"first_url": {}}, {"score": {"calls": str(log)}}]
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(yaml.safe_dump({"name": "toy", "input": {"kind": "numbers", "rows": 120, "rows_per_part": 40}, "stages": stages}))
    assert pairmill("run", recipe, *TOYS, "--out", out).exit_code == 0
    calls(log)
    book.write_text(json.dumps({"u90": "dns", "u33": "http_4xx"}))
    again = pairmill("retry", out, *TOYS, "--json")
    assert again.exit_code == 0, again.stderr
    counted = calls(log)
    assert sorted(line.split()[0] for line in counted) == ["flaky"] * 4 + ["score"] * 2  # u16 stands in rows 16 and 17: one is kept
    assert json.loads(again.stdout)["retry"]["flaky"] == {"tried": 4, "have a value now": 3}
    assert pairmill("run", recipe, *TOYS, "--out", out).exit_code == 0 and not calls(log)
    assert pairmill("retry", out, *TOYS, "--reason", "all").exit_code == 0
    assert sorted(line.split()[0] for line in calls(log)) == ["flaky"] * 3  # u33 stands in rows 33 and 34


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--stage", "flakey"], ["no stage 'flakey'", "did you mean 'flaky'?"]),
        (["--stage", "source"], ["--stage source", "stages that compute: flaky, score"]),
        (["--stage", "first_url"], ["--stage first_url", "computes nothing"]),
        (["--reason", "timeot"], ["--reason timeot", "did you mean 'timeout'?", "passing, all"]),
        (["--reason", "below_cut"], ["--reason below_cut", "dropped", "--set"]),
        (["--reason", ","], ["--reason", "names no failure"]),
        (["--set", "score.factor=9"], ["--set score.factor=9", "more than speed and patience", "pairmill run"]),
        (["--set", "score.min=9"], ["--set score.min=9", "more than speed and patience"]),
        (["--set", "scor.min=9"], ["did you mean 'score'?"]),
    ],
)
def test_mistakes(tmp_path: Path, options: list[str], words: list[str]) -> None:
    recipe = tmp_path / "toy.yaml"
    stages = ["flaky", "first_url", "score"]
    recipe.write_text(yaml.safe_dump({"name": "toy", "input": {"kind": "numbers", "rows": 50, "rows_per_part": 50}, "stages": stages}))
    pairmill("run", recipe, *TOYS, "--out", tmp_path / "run")
    result = pairmill("retry", tmp_path / "run", *TOYS, *options)
    assert result.exit_code == 2 and result.stdout == "" and "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


def test_a_retry_needs_a_run_and_not_its_input(tmp_path: Path, web: SickWeb) -> None:
    missing = pairmill("retry", tmp_path)
    assert missing.exit_code == 2 and "no run here" in missing.stderr
    recipe = write_recipe(tmp_path, 40, lambda row: web.url(f"/{row}.jpg"), 40)
    web.sick = frozenset({3})
    assert pairmill("run", recipe, "--out", tmp_path / "run").exit_code == 0
    (tmp_path / "pairs.csv").unlink()
    web.sick = frozenset()
    again = pairmill("retry", tmp_path / "run", "--json")
    assert again.exit_code == 0 and json.loads(again.stdout)["rows"]["kept"] == 40


def test_ctrl_c_during_a_retry(tmp_path: Path) -> None:
    """Stops cleanly with code 130 and the command to go on; given again it ends where an unbroken run ends."""
    book, out = tmp_path / "book.json", tmp_path / "run"
    rows = 200
    book.write_text(json.dumps({f"u{row}": "timeout" for row in range(0, rows, 2)}))
    plugin = tmp_path / "slow_flaky.py"
    plugin.write_text(
        "import time\nimport pyarrow as pa\nfrom pipeline.stage import Params, Stage, tunes\nfrom schemas.outcome import Failure\n"
        "import json, pathlib\n\n\nclass SlowFlaky(Stage):\n    name = 'slow_flaky'\n    reads = ('url',)\n    writes = {'n': pa.int64()}\n"
        "    batch_size = 5\n\n    class Params(Params):\n        book: str = tunes('', 'answers')\n        pause: float = tunes(0.0, 'seconds per batch')\n\n"
        "    def compute(self, rows, ctx):\n        time.sleep(self.params.pause)\n        book = json.loads(pathlib.Path(self.params.book).read_text())\n"
        "        return [Failure(book[row['url']], 'recorded') if row['url'] in book else {'n': 1} for row in rows]\n"
    )
    recipe = tmp_path / "slow.yaml"
    stages = [{"slow_flaky": {"book": str(book)}}]
    recipe.write_text(yaml.safe_dump({"name": "slow", "input": {"kind": "numbers", "rows": rows, "rows_per_part": 20}, "stages": stages}))
    imports = [*TOYS, "--import", str(plugin)]
    assert pairmill("run", recipe, *imports, "--out", out).exit_code == 0
    book.write_text("{}")
    command = [sys.executable, "-m", "pipeline.cli", "retry", str(out), *imports, "--executor", "local", "--set", "slow_flaky.pause=0.15"]
    before = {path: path.stat().st_mtime_ns for path in (out / "verdicts" / "slow_flaky").iterdir()}
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 60
    while sum(path.stat().st_mtime_ns != when for path, when in before.items()) < 2:
        assert process.poll() is None and time.monotonic() < limit, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    told, notes = process.communicate(timeout=60)
    assert process.returncode == 130 and told == "" and "Traceback" not in notes
    assert f"to go on: pairmill retry {out}" in notes and not (out / "lock").exists()
    again = pairmill("retry", out, *imports, "--json")
    assert again.exit_code == 0 and 0 < json.loads(again.stdout)["retry"]["slow_flaky"]["tried"] < 100
    assert pairmill("run", recipe, *imports, "--out", tmp_path / "fresh").exit_code == 0
    from pipeline.run import open_run

    assert open_run(out).state_digest() == open_run(tmp_path / "fresh").state_digest()


HOLDER = """
import sys, time
from pathlib import Path
from pipeline.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("command", ["run", "retry"])
def test_a_folder_that_another_process_holds(tmp_path: Path, command: str) -> None:
    """Refused with the owner and the age of its lease while it lives; taken over when it was killed."""
    recipe, out = tmp_path / "toy.yaml", tmp_path / "run"
    book = tmp_path / "book.json"
    book.write_text(json.dumps({"u5": "timeout"}))
    stages = [{"flaky": {"book": str(book)}}]
    recipe.write_text(yaml.safe_dump({"name": "toy", "input": {"kind": "numbers", "rows": 50, "rows_per_part": 50}, "stages": stages}))
    arguments = [command, *([str(recipe), "--out"] if command == "run" else []), str(out), *TOYS]
    assert pairmill("run", recipe, *TOYS, "--out", out).exit_code == 0
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        refused = subprocess.run([sys.executable, "-m", "pipeline.cli", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
        assert refused.returncode == 1 and refused.stdout == ""
        assert f"process {holder.pid}" in refused.stderr and os.uname().nodename in refused.stderr and "heartbeat" in refused.stderr
    finally:
        holder.kill()
        holder.wait()
    assert (out / "lock").exists()
    taken = subprocess.run([sys.executable, "-m", "pipeline.cli", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    assert taken.returncode == 0, taken.stderr
    assert not (out / "lock").exists()
