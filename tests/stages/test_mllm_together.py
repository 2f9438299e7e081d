"""Batches that pass through several MLLM stages one after the other: the bytes of stage after stage, fewer decodings, no request too many."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, RunResult, run
from stages.chat_rows import ChatStage
from stages.images.decoders import Decoders
from tests.stages.conftest import jpeg_bytes

pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images, one of them damaged behind its header."""
    made = tmp_path_factory.mktemp("pictures")
    for number in range(60):
        (made / f"{number:03}.jpg").write_bytes(jpeg_bytes(64, 48, number))
        (made / f"{number:03}.txt").write_text(f"a red dog, number {number}" if number % 13 else "")
    return made


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChatStage, "batch_size", 7)


def go(folder: Path, out: Path, log: Path | None = None, minimum: float = 30, late: bool = False, second: str = "dense", **fake: Any) -> RunResult:
    spec = {"kind": "fake", "failures": {"bad_answer": 0.03, "model_error": 0.03, "truncated": 0.05}, **fake, **({"log": str(log)} if log else {})}
    stages = [
        "read_images",
        {"mllm_score": {"aspects": ["image_text_matching"], "thresholds": {"image_text_matching": minimum}}},
        {"caption_short": {"use": "caption"}}, {"caption_second": {"use": "caption", "format": second}},
        {"score_again": {"use": "mllm_score", "aspects": ["caption_text_quality"], "thresholds": {"caption_text_quality": 10}}},
        {"caption_merged": {"use": "caption", "prompt": "caption_merged", "fields": {"caption": "caption_short.text", "tags": "caption_second.text"}}},
        "select",
    ]  # fmt: skip
    given = {"input": {"kind": "image_folder", "folder": str(folder), "rows_per_part": 25}, "models": {"mllm": spec}, "stages": stages}
    given |= {"jobs": ["write_shards"], "decide": "late" if late else "early"}
    return run(build_recipe(given), out, RunOptions(executor="local"))


def stage_by_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.groups.may_follow", lambda *_: False)


def bytes_of(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted((out / "dataset").rglob("*")) if file.is_file()}


def state(out: Path) -> str:
    from pipeline.run import open_run

    return open_run(out).state_digest()


@pytest.mark.parametrize("late", [False, True])
def test_passing_together_gives_the_bytes_of_stage_after_stage(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    together = go(folder, tmp_path / "together", tmp_path / "log", late=late)
    asked = Counter((tmp_path / "log").read_text().splitlines())
    stage_by_stage(monkeypatch)
    apart = go(folder, tmp_path / "apart", tmp_path / "log2", late=late)
    assert asked == Counter((tmp_path / "log2").read_text().splitlines()) and max(asked.values()) == 1
    assert together.tally.computed == apart.tally.computed and together.tally.calls == apart.tally.calls
    assert state(tmp_path / "together") == state(tmp_path / "apart")
    assert bytes_of(tmp_path / "together") == bytes_of(tmp_path / "apart")


def test_an_image_is_decoded_once_for_all_its_prompts(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counter[str]()
    plain = Decoders.fit

    def fit(self: Decoders, data: bytes, max_pixels: int) -> Any:
        counted["fit"] += 1
        return plain(self, data, max_pixels)

    monkeypatch.setattr(Decoders, "fit", fit)
    result = go(folder, tmp_path / "run")
    scored = sum(1 for number in range(60) if number % 13)
    reached_merged = result.tally.computed["caption_merged"]
    assert counted["fit"] == 60 - (60 - scored) + reached_merged, "rows without a text ask nothing; caption_merged reads captions and comes after"
    counted.clear()
    stage_by_stage(monkeypatch)
    go(folder, tmp_path / "apart")
    assert counted["fit"] > 2 * scored


def test_all_prompts_of_a_batch_come_before_those_of_the_next_but_two(tmp_path: Path, folder: Path) -> None:
    tally = go(folder, tmp_path / "run", tmp_path / "log", minimum=0, concurrency=1, seconds=0.002).tally
    lines = (tmp_path / "log").read_text().splitlines()
    first_dense = next(at for at, line in enumerate(lines) if "more than 100 words" in line)
    scores_before = sum("Score image_text_matching" in line for line in lines[:first_dense])
    assert 0 < scores_before < 25, "the second caption of the first batch does not wait for the part's last score"
    assert sorted(tally.model_seconds) == sorted(tally.seconds) and sum(tally.model_seconds.values()) > 0.002 * len(lines)
    assert all(busy <= 1.1 * tally.seconds[stage] for stage, busy in tally.model_seconds.items()), "no stage has the model for longer than it lasts"


def test_random_changes_come_to_the_state_of_a_fresh_run(tmp_path: Path, folder: Path) -> None:
    draw = random.Random(3)
    for step in range(6):
        wanted = {"minimum": draw.choice([0, 20, 45, 70]), "second": draw.choice(["dense", "descriptive"])}
        go(folder, tmp_path / "run", **wanted)
        go(folder, tmp_path / f"fresh-{step}", **wanted)
        assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / f"fresh-{step}"), f"step {step}: {wanted}"


def test_requests_that_end_the_engine_fail_their_rows_alone(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(folder, tmp_path / "together", poison="number 7 ", minimum=0)
    stage_by_stage(monkeypatch)
    go(folder, tmp_path / "apart", poison="number 7 ", minimum=0)
    assert bytes_of(tmp_path / "together") == bytes_of(tmp_path / "apart")
