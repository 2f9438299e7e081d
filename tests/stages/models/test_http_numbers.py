"""Numbers from a server that splits them into digits: one that continues answers, those that do not, and vLLM's own."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pipeline.errors import Fatal
from schemas.outcome import Failure, FailureCode
from stages.mllm_score import expectation
from stages.models import http as kind
from stages.models.numbers import LEFT_OUT
from tests.stages.models.asking_images import request
from tests.stages.models.chat_server import ChatServer, error

TOKENS = [*"0123456789", " ", "\n", "<|im_end|>", "a"]


def said(question: str, begun: str) -> dict[str, float]:
    """What the model of these tests says next: digits for the most part."""
    draw = random.Random(f"{question} {begun}")
    weights = {token: draw.random() ** 8 * (1.0 if token.isdigit() or token == "<|im_end|>" else 0.05) for token in TOKENS}
    weights[" "] += "spaced" in question and not begun
    return {token: weight / sum(weights.values()) for token, weight in weights.items()}


def by_loops(question: str) -> dict[int, float]:
    """Each number by itself, with and without a space before it."""
    found = dict.fromkeys(range(101), 0.0)
    for number, space in itertools.product(range(101), ("", " ")):
        text, chance = f"{space}{number}", 1.0
        for at, letter in enumerate(text):
            chance *= said(question, text[:at])[letter]
        longer = [digit for digit in "0123456789" if number and int(f"{number}{digit}") <= 100]
        found[number] += chance * (1.0 - sum(said(question, text)[digit] for digit in longer))
    return found


class DigitServer(ChatServer):
    """A token per character, and a template with 3 tokens before each turn and 2 behind it. `continues`: yes, trimmed, refused, ignored, uncounted."""

    def __init__(self, continues: str = "yes"):
        super().__init__()
        self.continues = continues
        self.answer = self.speak

    def speak(self, body: dict[str, Any], number: int) -> web.Response:
        if body.get("continue_final_message") and self.continues == "refused":
            return error(400, "unknown field continue_final_message")
        texts, begun = [self.text(turn) for turn in body["messages"]], ""
        question = next(text for text, turn in zip(texts, body["messages"], strict=True) if turn["role"] == "user")
        prompt_tokens = sum(3 + len(text) + 2 for text in texts)
        if body.get("continue_final_message") and self.continues != "ignored":
            begun, prompt_tokens = texts[-1], prompt_tokens - 2
            if self.continues == "trimmed":
                begun, prompt_tokens = begun.strip(), prompt_tokens - len(begun) + len(begun.strip())
        else:
            prompt_tokens += 3
        chances = said(question, begun)
        if "structured_outputs" in body:
            allowed = sum(chance for token, chance in chances.items() if token.isdigit())
            chances = {token: chance / allowed for token, chance in chances.items() if token.isdigit()}
        top = [{"token": token, "logprob": math.log(chance)} for token, chance in sorted(chances.items(), key=lambda one: -one[1])]
        choice = {"message": {"content": "42"}, "finish_reason": "stop", "logprobs": {"content": [{"top_logprobs": top}]} if body.get("logprobs") else None}
        usage = {} if self.continues == "uncounted" else {"prompt_tokens": prompt_tokens, "completion_tokens": 1}
        return web.json_response({"choices": [choice], "usage": usage})

    def text(self, turn: dict[str, Any]) -> str:
        content = turn["content"]
        return content if isinstance(content, str) else next(part["text"] for part in content if part["type"] == "text")


@pytest.fixture
def serve() -> Iterator[Callable[[str], DigitServer]]:
    made: list[DigitServer] = []

    def make(continues: str = "yes") -> DigitServer:
        made.append(DigitServer(continues))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.mark.parametrize("choices", [(), ("0", "42")])
def test_a_server_that_continues_answers_tells_every_number(
    serve: Callable[..., DigitServer], load: Callable[..., kind.HttpChat], choices: tuple[str, ...]
) -> None:
    server = serve()
    asked = [request(at, f"question {at}", (8, 8), max_tokens=4, numbers=True, choices=choices) for at in range(8)]
    answers = load(server.url).chat(asked)
    wanted = [by_loops(one.text) for one in asked]
    assert len({round(expectation(one)) for one in wanted}) > 4
    for answer, one in zip(answers, wanted, strict=True):
        assert expectation(answer.numbers) == pytest.approx(expectation(one), abs=100 * LEFT_OUT + 0.01)
        likely = max(one, key=one.__getitem__)
        assert answer.numbers[likely] == pytest.approx(one[likely], rel=0.01)
    further = [body for body in server.bodies if body.get("continue_final_message") and len(body["messages"]) == 3]
    assert all(body["add_generation_prompt"] is False and body["max_tokens"] == 1 and "structured_outputs" not in body for body in further)
    assert sum(answer.n_tokens for answer in answers) == len(asked) + len(further) + len(asked) * bool(choices), "a token each"
    assert len(server.bodies) == len(asked) * (1 + bool(choices)) + len(further) + 4, "two for the tokenizer, and two whether it continues"


@pytest.mark.parametrize(("continues", "told"), [("refused", "HTTP 400: unknown field"), ("ignored", "it makes"), ("uncounted", "it counts no prompt tokens")])
def test_a_server_that_does_not_continue_answers_stops_the_run(
    serve: Callable[..., DigitServer], load: Callable[..., kind.HttpChat], continues: str, told: str
) -> None:
    chat = load(serve(continues).url)
    for _ in range(2):  # the second without asking
        with pytest.raises(Fatal, match=f"'tiny' splits numbers.*continue_final_message.*{told}.*switch `expectation` off"):
            chat.chat([request(0, "question 0", (8, 8), max_tokens=4, numbers=True)])
    assert isinstance(chat.chat([request(0, "question 0", (8, 8), max_tokens=4)])[0].text, str), "without expectation it answers"


def test_a_failure_of_a_further_request_is_that_rows(serve: Callable[..., DigitServer], load: Callable[..., kind.HttpChat]) -> None:
    server = serve()
    server.answer = lambda body, n: error(400, "too long") if len(body["messages"]) == 3 and "question 1" in str(body) else server.speak(body, n)
    found = load(server.url).chat([request(at, f"question {at}", (8, 8), max_tokens=4, numbers=True) for at in range(3)])
    assert found[1] == Failure(FailureCode.MODEL_ERROR, "HTTP 400: too long")
    assert all(expectation(found[at].numbers) == pytest.approx(expectation(by_loops(f"question {at}")), abs=0.51) for at in (0, 2))


def test_an_answer_continued_behind_something_else_is_that_rows_failure(serve: Callable[..., DigitServer], load: Callable[..., kind.HttpChat]) -> None:
    asked = [request(0, text, (8, 8), max_tokens=4, numbers=True) for text in ("question 0", "spaced question")]
    for continues in ("yes", "trimmed"):
        found = load(serve(continues).url).chat(asked)
        assert expectation(found[0].numbers) == pytest.approx(expectation(by_loops("question 0")), abs=0.51)
        if continues == "yes":
            assert expectation(found[1].numbers) == pytest.approx(expectation(by_loops("spaced question")), abs=0.51)
        else:
            assert isinstance(found[1], Failure) and "asked to continue ' '" in found[1].detail


def test_whole_numbers_are_told_from_digits_by_counting_a_prompts_tokens(load: Callable[..., kind.HttpChat]) -> None:
    """First tokens 8 and 9 alone: with whole numbers they are these numbers."""
    server = ChatServer()
    top = [{"token": "8", "logprob": math.log(0.5)}, {"token": "9", "logprob": math.log(0.25)}]
    choice = {"message": {"content": "8"}, "finish_reason": "stop", "logprobs": {"content": [{"top_logprobs": top}]}}
    server.answer = lambda body, n: web.json_response({"choices": [choice], "usage": {"prompt_tokens": len(str(body["messages"][-1]["content"]).split())}})
    try:
        chat = load(server.url)
        for _ in range(2):
            assert chat.chat([request(0, numbers=True)])[0].numbers == pytest.approx({8: 0.5, 9: 0.25})
        assert len(server.bodies) == 4, "the tokenizer is looked at once"
    finally:
        server.close()


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_vllms_own_server_continues_answers(vllm_server: str, load: Callable[..., kind.HttpChat]) -> None:
    chat = load(vllm_server, name="served")
    numbers = chat._numbers
    assert chat._loop.submit(numbers._has_whole_numbers([])).result() is True
    chat._loop.submit(numbers._check_continues()).result()
    assert numbers._refusal == ""


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_numbers_over_vllms_server_are_those_of_both_engines(tmp_path: Path, load: Callable[..., kind.HttpChat]) -> None:
    """A model with a token per digit, in an engine of its own."""
    pytest.importorskip("vllm")
    from pipeline.models import local_model
    from stages.models import transformers as plain
    from tests.stages.models.tiny_qwen2_vl import save_tiny_qwen2_vl
    from tests.stages.models.vllm_serving import serving

    weights = str(save_tiny_qwen2_vl(tmp_path / "tiny-digits", digits=True))
    spec = {"kind": "vllm", "weights": weights, "dtype": "float32", "max_model_len": 512, "max_num_seqs": 16, "enforce_eager": True}
    engine = local_model(spec).model
    try:
        for choices in ((), tuple(map(str, range(101)))):
            asked = [request(at, f"score {at}", max_tokens=4, numbers=True, choices=choices) for at in range(6)]
            answers = [plain.load({"kind": "transformers", "weights": weights}).chat(asked), engine.chat(asked)]
            with serving(spec) as url:
                answers.append(load(url, name="served").chat(asked))
            for first, *others in zip(*answers, strict=True):
                assert len(first.numbers) > 50
                for other in others:
                    assert expectation(other.numbers) == pytest.approx(expectation(first.numbers), abs=0.1)
                    assert all(chance == pytest.approx(first.numbers[number], rel=0.02) for number, chance in other.numbers.items() if chance > 0.01)
    finally:
        engine.close()
