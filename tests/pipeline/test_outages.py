"""Outages of the network under the real download stage: stopped with a diagnosis, mended by the next start, and the dataset is that of a
run without the outage."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.run import open_run
from pipeline.store import VALUES
from stages.images import resolver
from tests.pipeline.outage_web import BUDGET, OutageWeb, pairmill, tree_digest, write_recipe
from tests.stages.conftest import jpeg_bytes

ROWS = 800
PER_PART = 100


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return [jpeg_bytes(8, 8, seed) for seed in range(ROWS)]


@pytest.fixture
def web(images: list[bytes]) -> Iterator[OutageWeb]:
    server = OutageWeb(images)
    yield server
    server.close()


def run_args(recipe: Path, out: Path, *more: str) -> list[str]:
    return ["run", str(recipe), "--out", str(out), "--executor", "local", *more]


def computed(told: str) -> int:
    """Rows that download computed, from the JSON summary."""
    return next(stage["computed"] for stage in json.loads(told)["stages"] if stage["stage"] == "download")


def failures_in(out: Path) -> dict[int, int]:
    """Part -> stored failures of download."""
    view = open_run(out)
    keys = [(VALUES, "download", part) for part in range(len(view.parts))]
    return {part: record.counts["failed"] for (_, _, part), record in view.store.records(keys).items()}


def unbroken(recipe: Path, folder: Path) -> dict[str, str]:
    result = pairmill(*run_args(recipe, folder / "unbroken", "--json"))
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["rows"]["kept"] == ROWS
    return tree_digest(folder / "unbroken" / "dataset")


def test_a_resolver_that_fails_for_all(tmp_path: Path, web: OutageWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names under .invalid never resolve. Nothing is committed, the cause is named; with a resolver that works the run ends as if never broken."""
    recipe = write_recipe(tmp_path, ROWS, lambda row: f"http://host{row % 50}.invalid:{web.port}/{row}.jpg", PER_PART)
    monkeypatch.setenv("RES_OPTIONS", "timeout:1 attempts:1")  # a test machine's resolver may be slow to say no
    out = tmp_path / "run"
    for _ in range(2):  # while it lasts, a further start stops in the same way
        stopped = pairmill(*run_args(recipe, out))
        assert stopped.exit_code == 1 and stopped.stdout == ""
        assert "download: 100% of the first 50 rows failed, all dns" in stopped.stderr, stopped.stderr
        assert "check the resolver" in stopped.stderr and "Traceback" not in stopped.stderr
        assert failures_in(out) == {}
    real = socket.getaddrinfo

    def mended(host: Any, *args: Any, **kwargs: Any) -> Any:
        return real("127.0.0.1" if str(host).endswith(".invalid") else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", mended)
    monkeypatch.setattr(resolver, "_threads", resolver.LookupThreads())  # a later start is a new process and remembers no answer
    again = pairmill(*run_args(recipe, out, "--json"))
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["rows"]["kept"] == ROWS
    assert tree_digest(out / "dataset") == unbroken(recipe, tmp_path)


@pytest.mark.parametrize("rows_per_part", [100, 400])
def test_a_network_cut_after_some_rows(tmp_path: Path, web: OutageWeb, rows_per_part: int) -> None:
    """Connections are reset from row 350 on: in the middle of a part, so that a committed part holds rows of the outage."""
    recipe = write_recipe(tmp_path, ROWS, lambda row: web.url(f"/{row}.jpg"), rows_per_part, concurrency=8)
    out = tmp_path / "run"
    web.breaks = lambda row: web.served >= 350
    stopped = pairmill(*run_args(recipe, out))
    assert stopped.exit_code == 1
    assert "rows failed, all reset" in stopped.stderr and "check the network" in stopped.stderr
    assert 350 < len(web.asked) <= 350 + BUDGET["window"] + 8
    held = failures_in(out)
    assert sum(held.values()) <= BUDGET["window"]
    if rows_per_part == 100:
        assert held[3] > 0, "the part in which the network went is committed: it broke no budget"
    status = pairmill("status", out)
    assert "stopped by the failure budget of download" in status.stdout

    web.breaks = lambda row: False
    good = sum(rows_per_part for part in held) - sum(held.values())
    again = pairmill(*run_args(recipe, out, "--json"))
    assert again.exit_code == 0, again.stderr
    assert computed(again.stdout) == ROWS - good, "what was good and committed is not fetched again"
    assert json.loads(again.stdout)["rows"]["kept"] == ROWS
    assert tree_digest(out / "dataset") == unbroken(recipe, tmp_path)


def test_a_server_that_goes_away(tmp_path: Path, web: OutageWeb) -> None:
    """The listening socket closes in the middle of a part; further connections are refused."""
    recipe = write_recipe(tmp_path, ROWS, lambda row: web.url(f"/{row}.jpg"), PER_PART, concurrency=8)
    out = tmp_path / "run"
    web.breaks = lambda row: web.served >= 250 and web.stop_listening()
    stopped = pairmill(*run_args(recipe, out))
    assert stopped.exit_code == 1
    assert "connect (such as" in stopped.stderr and "the firewall and the proxy" in stopped.stderr
    web.breaks = lambda row: False
    web.listen_again()
    again = pairmill(*run_args(recipe, out, "--json"))
    assert again.exit_code == 0, again.stderr
    assert tree_digest(out / "dataset") == unbroken(recipe, tmp_path)


@pytest.mark.parametrize("rows_per_part", [100, 400])
def test_an_outage_that_stays_just_under_the_budget(tmp_path: Path, web: OutageWeb, rows_per_part: int) -> None:
    """Nine rows of ten fail from row 150 to 649: the run ends. The next start tries exactly those once more, unasked, and a third none."""
    recipe = write_recipe(tmp_path, ROWS, lambda row: web.url(f"/{row}.jpg"), rows_per_part)
    out = tmp_path / "run"
    web.breaks = lambda row: 150 <= row < 650 and row % 10 != 0
    first = pairmill(*run_args(recipe, out, "--json"))
    assert first.exit_code == 0, first.stderr
    assert json.loads(first.stdout)["rows"]["kept"] == ROWS - 450
    assert "the next run tries 450 rows" in first.stderr
    plan = json.loads(pairmill("plan", recipe, "--out", out, "--json").stdout)
    assert next(stage["rows"] for stage in plan["stages"] if stage["name"] == "download") == [450, 450]

    web.breaks = lambda row: row == 501  # fails again, and is then tried no more until a retry asks
    second = pairmill(*run_args(recipe, out, "--json"))
    assert second.exit_code == 0 and "are tried once more" in second.stderr
    assert computed(second.stdout) == 450
    assert json.loads(second.stdout)["rows"]["kept"] == ROWS - 1
    assert computed(pairmill(*run_args(recipe, out, "--json")).stdout) == 0
    web.breaks = lambda row: False
    asked = pairmill("retry", out, "--stage", "download", "--reason", "reset", "--json")
    assert asked.exit_code == 0 and json.loads(asked.stdout)["retry"] == {"download": {"tried": 1, "have a value now": 1}}
    assert tree_digest(out / "dataset") == unbroken(recipe, tmp_path)
