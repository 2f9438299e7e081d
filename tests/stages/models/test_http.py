"""Kind http: against a server on loopback that fails in every way, and against vLLM's own OpenAI server."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from PIL import Image

from pipeline.errors import Fatal, RecipeError
from pipeline.models import local_model
from schemas.outcome import Failure, FailureCode
from stages.models import http as kind
from stages.models.protocols import ChatAnswer
from tests.stages.models.asking_images import request
from tests.stages.models.chat_server import ANSWER, ChatServer, error


@pytest.fixture
def server() -> Iterator[ChatServer]:
    made = ChatServer()
    yield made
    made.close()


def test_request_holds_system_text_image_and_text_in_this_order(server: ChatServer, load: Callable[..., kind.HttpChat]) -> None:
    one = request(3, "what is it?", temperature=0.5, top_p=0.9, seed=7)
    assert load(server.url).chat([one]) == [ChatAnswer("a red dog", 4, "stop", 50)]
    body = server.bodies[0]
    assert [message["role"] for message in body["messages"]] == ["system", "user"] and body["messages"][0]["content"] == "a system text"
    image, text = body["messages"][1]["content"]
    assert text == {"type": "text", "text": "what is it?"}
    sent = Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))))
    assert (np.asarray(sent) == one.image).all()
    assert (body["temperature"], body["top_p"], body["seed"], body["max_tokens"], body["model"]) == (0.5, 0.9, 7, 12, "tiny")


def test_at_most_so_many_requests_at_a_time(server: ChatServer, load: Callable[..., kind.HttpChat]) -> None:
    load(server.url, concurrency=3).chat([request(at, side=(8, 8)) for at in range(20)])
    assert server.most == 3 and len(server.bodies) == 20


def test_rate_limit_is_kept(server: ChatServer, load: Callable[..., kind.HttpChat]) -> None:
    load(server.url, requests_per_minute=1200).chat([request(at, side=(8, 8)) for at in range(8)])
    assert server.times[-1] - server.times[0] >= 7 * 0.05 - 0.02


def test_what_may_pass_is_tried_again_and_retry_after_is_kept(server: ChatServer, load: Callable[..., kind.HttpChat]) -> None:
    def answer(body: dict[str, Any], number: int) -> web.Response:
        if number == 1:
            return error(429, "slow down", **{"Retry-After": "0.3"})
        return error(503, "later", **{"Retry-After": "0"}) if number == 2 else web.json_response(ANSWER)

    server.answer = answer
    assert load(server.url).chat([request()])[0].text == "a red dog"
    assert len(server.bodies) == 3 and server.times[1] - server.times[0] >= 0.3


@pytest.mark.parametrize(
    ("answer", "code", "told", "asked"),
    [
        (lambda body, n: error(429, "quota", **{"Retry-After": "0"}), FailureCode.RATE_LIMITED, "HTTP 429: quota", 3),
        (lambda body, n: error(500, "broken", **{"Retry-After": "0"}), FailureCode.HTTP_5XX, "HTTP 500: broken", 3),
        (lambda body, n: error(400, "maximum context length is 64"), FailureCode.MODEL_ERROR, "HTTP 400: maximum context length is 64", 1),
        (lambda body, n: web.json_response({"choices": []}), FailureCode.BAD_RESPONSE, "no answer in", 1),
        (lambda body, n: web.json_response([1]), FailureCode.BAD_RESPONSE, "no answer in", 1),
        (lambda body, n: web.json_response(ANSWER | {"usage": {"prompt_tokens": "many"}}), FailureCode.BAD_RESPONSE, "ValueError", 1),
        (lambda body, n: error(408, "too slow", **{"Retry-After": "0"}), FailureCode.TIMEOUT, "HTTP 408: too slow", 3),
    ],
)
def test_trouble_with_one_request_is_its_failure(
    server: ChatServer, load: Callable[..., kind.HttpChat], answer: Any, code: FailureCode, told: str, asked: int
) -> None:
    server.answer = answer
    found = load(server.url, retries=2).chat([request()])[0]
    assert isinstance(found, Failure) and found.code == code and told in found.detail and len(server.bodies) == asked


def test_one_bad_request_leaves_the_others_alone(server: ChatServer, load: Callable[..., kind.HttpChat]) -> None:
    server.answer = lambda body, n: error(400, "no") if "poison" in json.dumps(body["messages"]) else web.json_response(ANSWER)
    found = load(server.url).chat([request(0), request(1, "poison"), request(2)])
    assert [isinstance(one, Failure) for one in found] == [False, True, False]


def test_refusals_and_cut_answers_are_told_apart(server: ChatServer, load: Callable[..., kind.HttpChat]) -> None:
    endings = [("content_filter", {}), ("length", {}), ("stop", {"refusal": "I will not."})]

    def answer(body: dict[str, Any], number: int) -> web.Response:
        ended, more = endings[number - 1]
        return web.json_response({"choices": [{"message": {"content": "text", **more}, "finish_reason": ended}]})

    server.answer = answer
    chat = load(server.url)
    assert [chat.chat([request()])[0].finish_reason for _ in endings] == ["refused", "length", "refused"]


def test_numbers_come_from_the_first_tokens_told(server: ChatServer, load: Callable[..., kind.HttpChat]) -> None:
    top = [{"token": "87", "logprob": np.log(0.5)}, {"token": " 87", "logprob": np.log(0.1)}, {"token": "9", "logprob": np.log(0.2)}]
    top += [{"token": "a", "logprob": -1.0}, {"token": "101", "logprob": -1.0}, {"token": "²", "logprob": -1.0}]
    choice = {"message": {"content": "87"}, "finish_reason": "length", "logprobs": {"content": [{"top_logprobs": top}]}}
    server.answer = lambda body, n: web.json_response({"choices": [choice]})
    assert load(server.url).chat([request(numbers=True)])[0].numbers == pytest.approx({87: 0.6, 9: 0.2})
    assert server.bodies[0]["logprobs"] is True


def test_yes_is_weighed_against_no_among_the_first_tokens_told(server: ChatServer, load: Callable[..., kind.HttpChat]) -> None:
    top = [{"token": "Yes", "logprob": np.log(0.5)}, {"token": " yes", "logprob": np.log(0.1)}, {"token": "no", "logprob": np.log(0.2)}]
    choice = {"message": {"content": "Yes"}, "finish_reason": "stop", "logprobs": {"content": [{"top_logprobs": top}]}}
    server.answer = lambda body, n: web.json_response({"choices": [choice]})
    assert load(server.url).chat([request(yes_no=True)])[0].yes == 0.75
    assert server.bodies[0]["logprobs"] is True


def test_key_comes_from_the_environment_and_stands_in_no_message(
    server: ChatServer, load: Callable[..., kind.HttpChat], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sk-" + "s3cretkey" * 4
    monkeypatch.setenv("MY_KEY", secret)
    load(server.url, key_env="MY_KEY").chat([request()])
    assert server.headers[0]["Authorization"] == f"Bearer {secret}"
    server.answer = lambda body, n: error(401, f"bad header Authorization: Bearer {secret}")
    with pytest.raises(Fatal, match="MY_KEY") as refused:
        load(server.url, key_env="MY_KEY").chat([request()])
    assert "s3cretkey" not in str(refused.value)


def test_no_server_gets_the_key_into_a_failure(server: ChatServer, load: Callable[..., kind.HttpChat], monkeypatch: pytest.MonkeyPatch) -> None:
    """A row's failure is published, in the report and among the rejected rows."""
    secret = "gateway-key.of.no.known.form"
    monkeypatch.setenv("MY_KEY", f"{secret}\n")
    answers = [error(400, f"{secret} may not ask"), web.json_response({"choices": [], "asked_by": secret}), web.Response(text=f"<p>{secret}</p>")]
    server.answer = lambda body, n: answers[n - 1]
    chat = load(server.url, key_env="MY_KEY", retries=0)
    found = [chat.chat([request()])[0] for _ in answers]
    assert server.headers[0]["Authorization"] == f"Bearer {secret}", "without the line break of the file that it comes from"
    assert all(isinstance(one, Failure) and "***" in one.detail and secret not in one.detail for one in found)
    server.answer = lambda body, n: error(401, f"Incorrect API key provided: {secret}")
    with pytest.raises(Fatal, match=r"refuses the key \(HTTP 401: Incorrect API key provided: \*\*\*\)"):
        chat.chat([request()])


def test_without_a_key_the_message_names_the_variable_and_a_redirect_the_address(server: ChatServer, load: Callable[..., kind.HttpChat]) -> None:
    server.answer = lambda body, n: error(401, "no key")
    with pytest.raises(Fatal, match="asks for a key, and the environment variable NO_SUCH_KEY is not set"):
        load(server.url, key_env="NO_SUCH_KEY").chat([request()])
    server.answer = lambda body, n: web.Response(status=308, headers={"Location": "https://elsewhere/v1/chat/completions"})
    with pytest.raises(Fatal, match="leads to https://elsewhere/v1"):
        load(server.url).chat([request()])


def test_answers_in_parts_and_with_half_a_character_are_read(server: ChatServer, load: Callable[..., kind.HttpChat]) -> None:
    contents = [[{"type": "text", "text": "a red "}, {"type": "text", "text": "dog"}], "a dog \ud83d here"]
    server.answer = lambda body, n: web.json_response({"choices": [{"message": {"content": contents[n - 1]}, "finish_reason": "stop"}]})
    chat = load(server.url)
    assert [chat.chat([request()])[0].text for _ in contents] == ["a red dog", "a dog ? here"]


def test_a_process_that_asked_ends_without_a_word_of_open_connections(server: ChatServer) -> None:
    program = f"""
from stages.models.http import load
from tests.stages.models.asking_images import request
print(load({{"kind": "http", "name": "tiny", "url": {server.url!r}}}).chat([request()])[0].text)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert (ended.stdout, ended.stderr) == ("a red dog\n", "")


def test_a_server_that_is_not_there_stops_the_run(load: Callable[..., kind.HttpChat]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(Fatal, match="cannot be reached.*start the server"):
        load(url, retries=0).chat([request()])


def test_wrong_specs_are_refused() -> None:
    with pytest.raises(RecipeError, match="needs `url`"):
        kind.identity({"kind": "http", "name": "x"})
    with pytest.raises(RecipeError, match="no option 'api_key'"):
        kind.identity({"kind": "http", "name": "x", "url": "http://h", "api_key": "k"})
    with pytest.raises(RecipeError, match="must begin with http"):
        kind.identity({"kind": "http", "name": "x", "url": "localhost:8000/v1"})
    assert kind.identity({"kind": "http", "name": "x", "url": "http://h"}) == kind.identity({"kind": "http", "name": "x", "url": "http://other", "retries": 1})


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_vllms_own_server_gives_the_engines_answers(vllm_spec: dict[str, Any], vllm_server: str, load: Callable[..., kind.HttpChat]) -> None:
    engine = local_model(vllm_spec).model
    requests = [request(at, f"describe {at}") for at in range(6)]
    served = load(vllm_server, name="served").chat(requests)
    assert [answer.text for answer in served] == [answer.text for answer in engine.chat(requests)]
    assert [answer.prompt_tokens for answer in served] == [answer.prompt_tokens for answer in engine.chat(requests)]
    assert load(vllm_server, name="served").chat([request(0, choices=("yes", "no"))])[0].text in ("yes", "no")
    found = load(vllm_server, name="served").chat([request(0, "dog " * 2000), request(1)])
    assert isinstance(found[0], Failure) and found[0].code == FailureCode.MODEL_ERROR and "context length" in found[0].detail
    assert isinstance(found[1], ChatAnswer)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"concurrency": 0}, "concurrency of a model of kind http must be a whole number above 0, found 0"),
        ({"retries": -1}, "retries of a model of kind http must be a whole number from 0 on, found -1"),
        ({"timeout_s": "soon"}, "timeout_s of a model of kind http must be a number above 0, found 'soon'"),
        ({"requests_per_minute": "fast"}, "requests_per_minute of a model of kind http must be a number from 0 on, found 'fast'"),
    ],
)
def test_a_number_that_is_none_or_too_low_is_refused_before_the_run(option: dict[str, Any], told: str) -> None:
    spec = {"kind": "http", "name": "x", "url": "http://h"}
    with pytest.raises(RecipeError, match=re.escape(told)):
        kind.identity(spec | option)
    assert kind.identity(spec | {"requests_per_minute": None, "retries": 0}) == kind.identity(spec)
