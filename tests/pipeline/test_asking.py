"""Requests that are answered one by one: cache, resending after the engine's end, requests at fault."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import answer_cache
from pipeline.answer_cache import MOST_FILES, AnswerCache
from pipeline.asking import DEAD_REQUESTS, Asking
from pipeline.errors import EngineDied, Fatal
from pipeline.models import Gate, LocalModel
from pipeline.store import Store
from schemas.outcome import Failure, FailureCode


@dataclass(frozen=True)
class Answer:
    text: str

    def to_json(self) -> str:
        return self.text


@dataclass(frozen=True)
class Ask:
    text: str

    def key(self, model_digest: str) -> bytes:
        return hashlib.sha256(f"{model_digest} {self.text}".encode()).digest()

    def read_answer(self, text: str) -> Answer:
        return Answer(text)


class Engine:
    """Answers in capitals. `dies(requests under way, how often it has died)` ends all that is under way; `poison` always does."""

    digest = "engine-1"

    def __init__(self, poison: frozenset[str] = frozenset(), deaths: int = 0, seconds: float = 0.0):
        self.poison, self.deaths_left, self.seconds = poison, deaths, seconds
        self.asked: list[str] = []
        self.most = self.now = self.deaths = 0
        self.lock = threading.Lock()

    def describe(self) -> dict[str, str]:
        return {}

    def chat(self, requests: list[Ask]) -> list[Answer | Failure]:
        with self.lock:
            self.asked += [request.text for request in requests]
            self.now += 1
            self.most = max(self.most, self.now)
            began = self.deaths
            if any(request.text in self.poison for request in requests):
                self.deaths += 1
            elif self.deaths_left and len(self.asked) % 10 == 0:
                self.deaths += 1
                self.deaths_left -= 1
        time.sleep(self.seconds)
        with self.lock:
            self.now -= 1
            if self.deaths > began:
                raise EngineDied("gone")
        return [Failure(FailureCode.MODEL_ERROR, "too long") if r.text.startswith("long") else Answer(r.text.upper()) for r in requests]


def asking(engine: Engine, root: Path, concurrency: int = 8, part: int = 0) -> Asking:
    return Asking(LocalModel(engine, concurrency), "chat", AnswerCache(Store(root), engine.digest, part))


def texts(answers: list[object]) -> list[object]:
    return [answer.text if isinstance(answer, Answer) else answer for answer in answers]


def test_answers_come_in_order_and_are_asked_once(tmp_path: Path) -> None:
    engine = Engine()
    one = asking(engine, tmp_path)
    wanted = ["b", "a", "b", "c"]
    nothing, failed = None, Failure(FailureCode.BAD_ROW, "no image")
    assert texts(one.ask([*map(Ask, wanted), nothing, failed]).result()) == ["B", "A", "B", "C", None, failed]
    assert sorted(engine.asked) == ["a", "b", "c"] and one.sent == 3


def test_what_is_cached_is_not_asked_again_also_after_a_kill(tmp_path: Path) -> None:
    engine = Engine()
    first = asking(engine, tmp_path)
    first.ask([Ask(f"t{i}") for i in range(20)]).result()
    first.cache.flush()  # what comes after is lost with the process
    first.ask([Ask("lost")]).result()
    second = asking(engine, tmp_path)
    engine.asked.clear()
    assert texts(second.ask([Ask(f"t{i}") for i in range(21)]).result()) == [f"T{i}" for i in range(21)]
    assert engine.asked == ["t20"] and (second.sent, second.found) == (1, 20)
    other_part, other_model = asking(engine, tmp_path, part=1), Engine()
    other_model.digest = "engine-2"
    assert other_part.ask([Ask("t1")]).result() and asking(other_model, tmp_path).ask([Ask("t1")]).result()
    assert other_part.sent == 1 and other_model.asked == ["t1"]


def test_failures_are_not_cached(tmp_path: Path) -> None:
    engine = Engine()
    for _ in range(2):
        one = asking(engine, tmp_path)
        assert isinstance(one.ask([Ask("long text")]).result()[0], Failure)
        one.cache.flush()
    assert engine.asked == ["long text"] * 2


def test_answers_are_written_while_others_are_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_cache, "FLUSH_ANSWERS", 4)
    engine = Engine(seconds=0.02)
    one = asking(engine, tmp_path, concurrency=2)
    pending = one.ask([Ask(f"t{i}") for i in range(40)])
    seen: list[int] = []

    def look() -> None:
        while not seen or seen[-1] < 20:
            seen.append(len(AnswerCache(Store(tmp_path), engine.digest, 0)._known))
            time.sleep(0.02)

    watcher = threading.Thread(target=look)
    watcher.start()
    pending.result()
    one.cache.flush()
    watcher.join(10)
    assert any(0 < known < 40 for known in seen)


def test_a_part_has_few_cache_files(tmp_path: Path) -> None:
    cache = AnswerCache(Store(tmp_path), "m", 3)
    for number in range(5 * MOST_FILES):
        cache.put(hashlib.sha256(str(number).encode()).digest(), f"answer {number}")
        cache.flush()
    files = list((tmp_path / "cache" / "m").iterdir())
    assert len(files) <= MOST_FILES and all(file.name.startswith("part-00003.") for file in files)
    read = AnswerCache(Store(tmp_path), "m", 3)
    assert len(read._known) == 5 * MOST_FILES and read.get(hashlib.sha256(b"7").digest()) == "answer 7"


def test_engine_that_dies_is_asked_what_was_open(tmp_path: Path) -> None:
    engine = Engine(deaths=3, seconds=0.01)
    one = asking(engine, tmp_path)
    answers = [pending.result() for pending in [one.ask([Ask(f"{batch}-{i}") for i in range(30)]) for batch in range(3)]]
    assert [texts(batch) for batch in answers] == [[f"{batch}-{i}" for i in range(30)] for batch in range(3)]
    assert engine.deaths == 3 and 90 < len(engine.asked) < 90 + 3 * 8 + 1


def test_a_request_that_ends_the_engine_fails_alone(tmp_path: Path) -> None:
    engine = Engine(poison=frozenset({"p7", "p21"}), seconds=0.005)
    answers = asking(engine, tmp_path).ask([Ask(f"p{i}") for i in range(30)]).result()
    failed = {at for at, answer in enumerate(answers) if isinstance(answer, Failure)}
    assert failed == {7, 21} and "while it answered this request alone" in answers[7].detail
    assert [answer.text for at, answer in enumerate(answers) if at not in failed] == [f"P{i}" for i in range(30) if i not in failed]


def test_several_requests_in_a_row_that_end_the_engine_are_no_dead_engine_while_others_are_answered(tmp_path: Path) -> None:
    engine = Engine(poison=frozenset(f"p{i}" for i in range(10, 18)), seconds=0.002)
    one = asking(engine, tmp_path)
    one.ask([Ask("good")]).result()
    answers = one.ask([Ask(f"p{i}") for i in range(30)]).result()
    assert {at for at, answer in enumerate(answers) if isinstance(answer, Failure)} == set(range(10, 18))


def test_a_model_that_works_through_batches_is_asked_in_one_call_and_then_one_by_one(tmp_path: Path) -> None:
    engine = Engine(poison=frozenset({"p2"}))
    answers = asking(engine, tmp_path, concurrency=1).ask([Ask(f"p{i}") for i in range(5)]).result()
    assert [isinstance(answer, Failure) for answer in answers] == [False, False, True, False, False]
    assert engine.asked[:5] == [f"p{i}" for i in range(5)] and engine.most == 1


def test_an_engine_that_answers_nothing_stops_the_run(tmp_path: Path) -> None:
    engine = Engine(poison=frozenset(f"p{i}" for i in range(20)))
    with pytest.raises(Fatal, match=f"{DEAD_REQUESTS} requests in a row"):
        asking(engine, tmp_path).ask([Ask(f"p{i}") for i in range(20)]).result()


def test_after_an_error_nothing_more_is_sent(tmp_path: Path) -> None:
    engine = Engine(seconds=0.1)
    one = asking(engine, tmp_path, concurrency=2)
    one.ask([Ask(f"t{i}") for i in range(100)])
    time.sleep(0.15)
    one.close()
    time.sleep(0.3)
    assert 2 <= len(engine.asked) <= 8


def test_time_runs_out(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        asking(Engine(seconds=1.0), tmp_path).ask([Ask("a")]).result(0.1)


def test_alone_means_alone() -> None:
    gate, inside, most_beside = Gate(), 0, []
    lock = threading.Lock()

    def call(alone: bool) -> None:
        nonlocal inside
        with gate.passed(alone):
            with lock:
                inside += 1
            time.sleep(0.005)
            if alone:
                most_beside.append(inside)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=call, args=(number % 5 == 0,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most_beside == [1] * 6
