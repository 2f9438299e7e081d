"""Kind vllm with the real engine, started once per test run: answers against transformers, bad requests, the engine's end."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.answer_cache import AnswerCache
from pipeline.asking import Asking
from pipeline.models import LocalModel, local_model
from pipeline.store import Store
from schemas.outcome import Failure, FailureCode
from stages.models import transformers as plain
from stages.models.protocols import ChatAnswer
from stages.models.vllm import encoder_cache_tokens
from stages.models.watchdog import engine_processes
from tests.stages.models.asking_images import request

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def handle(vllm_spec: dict[str, Any]) -> LocalModel:
    return local_model(vllm_spec)


def test_greedy_answers_are_those_of_transformers(handle: LocalModel, tiny_mllm: Path) -> None:
    requests = [request(at, f"describe the dog {at}", (48 + 16 * (at % 3), 96)) for at in range(24)]
    ours = handle.model.chat(requests)
    theirs = plain.load({"kind": "transformers", "weights": str(tiny_mllm)}).chat(requests)
    same = sum(one.text == other.text for one, other in zip(ours, theirs, strict=True))
    assert same >= 20, f"{same} of 24: an untrained model's choices lie near each other, so a few may turn out otherwise"
    assert [one.prompt_tokens for one in ours] == [one.prompt_tokens for one in theirs]
    assert [one.finish_reason for one in ours] == [one.finish_reason for one in theirs]


def test_numbers_are_those_of_transformers(handle: LocalModel, tiny_mllm: Path) -> None:
    one = request(2, "score", max_tokens=2, numbers=True)
    ours = handle.model.chat([one])[0].numbers
    theirs = plain.load({"kind": "transformers", "weights": str(tiny_mllm)}).chat([one])[0].numbers
    assert set(ours) == set(theirs) == set(range(101))
    assert ours == pytest.approx(theirs, rel=0.02, abs=1e-4)


def test_yes_against_no_is_that_of_transformers(handle: LocalModel, tiny_mllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = plain.load({"kind": "transformers", "weights": str(tiny_mllm)})
    ids = {theirs.tokenizer(letter)["input_ids"][0]: word for letter, word in (("y", "yes"), ("n", "no"))}
    for model in (theirs, handle.model):  # the tiny vocabulary has no such words
        monkeypatch.setattr(model, "_yes_no_ids", ids)
    one = request(2, "is there a dog", max_tokens=2, yes_no=True)
    ours = handle.model.chat([one])[0].yes
    assert ours is not None and ours == pytest.approx(theirs.chat([one])[0].yes, abs=0.01)


def test_draws_follow_their_seed(handle: LocalModel) -> None:
    drawn = [request(0, temperature=1.0, seed=seed) for seed in range(4)]
    first = [answer.text for answer in handle.model.chat(drawn)]
    assert len(set(first)) == 4
    assert [answer.text for answer in handle.model.chat(drawn)] == first


def test_choices_are_kept_to(handle: LocalModel) -> None:
    answers = handle.model.chat([request(at, choices=("yes", "no")) for at in range(4)])
    assert {answer.text for answer in answers} <= {"yes", "no"}


def test_what_does_not_fit_fails_alone(handle: LocalModel) -> None:
    found = handle.model.chat([request(0), request(1, "dog " * 2000), request(2, side=(1, 400)), request(3)])
    assert [isinstance(one, Failure) for one in found] == [False, True, True, False]
    assert found[1].code == found[2].code == FailureCode.MODEL_ERROR
    assert "maximum context length is 512 tokens" in found[1].detail and "aspect ratio" in found[2].detail
    assert "0x" not in found[2].detail, "no address, which would differ from run to run"


def test_record_names_engine_version_and_weights(handle: LocalModel, vllm_spec: dict[str, Any]) -> None:
    facts = handle.describe()
    assert facts["engine"] == "vllm" and facts["name"] == "tiny-qwen2-vl" and "/" not in facts["name"] and facts["max_pixels"] == 448 * 448
    assert handle.digest.startswith("vllm-") and handle.concurrency == 32


def test_encodings_of_all_images_in_flight_are_kept_for_the_next_prompt(handle: LocalModel) -> None:
    # 32 requests of at most 256 image tokens (448 x 448 pixels of 28 x 28 each); vLLM by itself keeps as many tokens as one step may have
    assert encoder_cache_tokens(handle.model.spec) == 32 * 256
    assert handle.model._engine.vllm_config.scheduler_config.encoder_cache_size >= 32 * 256
    assert encoder_cache_tokens({"max_num_seqs": 512}) == 65_536 and encoder_cache_tokens({"encoder_cache_tokens": 100}) == 100


def test_engine_that_is_killed_is_started_again_and_asked_what_is_open(handle: LocalModel, tmp_path: Path) -> None:
    """The last test of this file: it costs a second start."""
    starts = handle.model.starts
    cache = AnswerCache(Store(tmp_path), handle.digest, 0)
    asking = Asking(handle, "chat", cache)
    requests = [request(at, "describe", max_tokens=200, temperature=1.0, seed=at) for at in range(48)]
    killed: list[int] = []

    def kill() -> None:
        while asking.cache._fresh == {} and not cache._known:
            time.sleep(0.005)
        for pid in engine_processes():
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    threading.Thread(target=kill).start()
    answers = asking.ask(requests).result()
    assert killed and handle.model.starts == starts + 1
    assert all(isinstance(answer, ChatAnswer) for answer in answers)
    assert len(requests) < asking.sent < 2 * len(requests), "only what was open was sent again"
    cache.flush()
    again = Asking(handle, "chat", AnswerCache(Store(tmp_path), handle.digest, 0))
    assert again.ask(requests).result() == answers and again.sent == 0
