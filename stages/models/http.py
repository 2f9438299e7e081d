"""Model kind `http`: any server with OpenAI's chat completions, such as `vllm serve`.

In a recipe: `models: {mllm: {kind: http, url: http://localhost:8000/v1, name: Qwen/Qwen2-VL-2B-Instruct}}`. Further keys: revision (a word of yours that
tells states of the server's model apart), max_pixels (448 * 448), key_env (environment variable that holds the key, OPENAI_API_KEY), concurrency
(requests in flight, 16), requests_per_minute (none), retries (5: of 408, 429, 5xx and broken connections, with growing pauses or as Retry-After says),
timeout_s (300, of one request). The key is read from the environment of the process that asks; it stands in no record and no log, also where a server
repeats it in what it says of an error.

Where `expectation` of mllm_score needs numbers that the server's tokenizer splits into digits, the server must continue an answer that is begun
(`continue_final_message`, as vLLM's do); one that does not stops the run with a message (`stages/models/http_numbers.py`).

A server that cannot be reached, or refuses the key, stops the run; what it says of one request is that row's failure.
"""

from __future__ import annotations

import asyncio
import atexit
import base64
import hashlib
import io
import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.errors import Fatal, RecipeError
from pipeline.secrets import HIDDEN
from schemas.outcome import Failure, FailureCode, cap_detail
from stages.models.event_loop import LoopThread
from stages.models.http_numbers import MOST_LOGPROBS, Failed, ServerNumbers, first_tokens
from stages.models.protocols import ChatAnswer, ChatRequest, yes_share
from stages.models.weights import DEFAULT_MAX_PIXELS, check_keys

if TYPE_CHECKING:
    import aiohttp
    import numpy as np

METHOD = "chat"
MACHINE_KEYS = frozenset({"url", "key_env", "concurrency", "requests_per_minute", "retries", "timeout_s"})
SHARED = True
USES_GPU = False
MOST_PAUSE_S = 60.0
_SHORTEST_KEY = 6  # what is shorter is a word such as 'none', for a server that asks for no key
_KEYS = frozenset({"revision", *MACHINE_KEYS})


def identity(spec: Mapping[str, Any]) -> str:
    """Name and revision; what weights a server holds cannot be seen. Raises RecipeError for an unknown or a missing key."""
    check_keys(spec, _KEYS)
    for key in ("url", "name"):
        if not spec.get(key):
            raise RecipeError(f"models: an http model needs `{key}`, for example {{kind: http, url: http://localhost:8000/v1, name: NAME}}")
    if not str(spec["url"]).startswith(("http://", "https://")):
        raise RecipeError(f"models: url {spec['url']!r} of an http model must begin with http:// or https://, such as http://localhost:8000/v1")
    if "weights" in spec:
        raise RecipeError("models: an http model has no `weights`; name the model with `name`, and its state with `revision`")
    return f"{spec['name']}@{spec.get('revision', '')}"


def concurrency(spec: Mapping[str, Any]) -> int:
    """Requests in flight."""
    return int(spec.get("concurrency", 16))


def load(spec: Mapping[str, Any]) -> HttpChat:
    """Raises RecipeError where the spec is wrong. The server is first asked by the first request."""
    identity(spec)
    return HttpChat(spec)


class _Again(Exception):
    """An attempt that may pass when repeated. pause_s: what the server asks for; None where it says nothing."""

    def __init__(self, failure: Failure, pause_s: float | None = None):
        super().__init__(failure.detail)
        self.failure = failure
        self.pause_s = pause_s


class HttpChat:
    """Sends requests from a loop of its own, at most `concurrency` at a time and `requests_per_minute` in all."""

    def __init__(self, spec: Mapping[str, Any]):
        self.spec = spec
        max_pixels = int(spec.get("max_pixels", DEFAULT_MAX_PIXELS))
        self.digest = "http-" + hashlib.sha256(f"{identity(spec)} {max_pixels}".encode()).hexdigest()[:32]
        self.url = str(spec["url"]).rstrip("/") + "/chat/completions"
        self.retries = int(spec.get("retries", 5))
        rate = spec.get("requests_per_minute")
        self._gap_s = 60.0 / float(rate) if rate else 0.0
        self._next_at = 0.0
        self._max_pixels = max_pixels
        self._loop = LoopThread("pairmill-http")
        self._session: aiohttp.ClientSession | None = None
        self._slots: asyncio.Semaphore | None = None
        self._numbers = ServerNumbers(str(spec["name"]), self._exchange)

    def describe(self) -> dict[str, Any]:
        name = str(self.spec["name"])
        return {"kind": "http", "name": name, "engine": "http", "engine_version": "", "max_pixels": self._max_pixels, "note": ""}

    def chat(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer | Failure]:
        """Answers in the order of the requests. Raises Fatal where the server cannot be reached or refuses the key."""
        return self._loop.gather(self._answer(request) for request in requests)

    def close(self) -> None:
        """Close open connections."""
        session, self._session = self._session, None
        if session is not None:
            self._loop.submit(session.close()).result()

    async def _answer(self, request: ChatRequest) -> ChatAnswer | Failure:
        body = self._body(request)
        found = await self._exchange(body)
        if isinstance(found, Failure):
            return found
        try:
            answer = self._read(found, request)
            if answer.finish_reason == "refused" or not request.sampling.numbers:
                return answer
            numbers, calls, prompt_tokens = await self._numbers.read(body, found)
        except Failed as failed:
            return failed.failure
        except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:  # of another form than OpenAI's
            return self._no_answer(found, error)
        return replace(answer, numbers=numbers, n_tokens=answer.n_tokens + calls, prompt_tokens=answer.prompt_tokens + prompt_tokens)

    async def _exchange(self, body: dict[str, Any]) -> dict[str, Any] | Failure:
        """Send a request, again where that may help. Its answer, which has a text."""
        data = json.dumps(body).encode()
        if self._slots is None:
            self._slots = asyncio.Semaphore(concurrency(self.spec))
        async with self._slots:
            for attempt in range(self.retries + 1):
                await self._turn()
                try:
                    return self._checked(await self._post(data))
                except _Refused as refused:
                    return Failure(FailureCode.MODEL_ERROR, str(refused))
                except _Again as again:
                    if attempt == self.retries:
                        if again.failure.code == FailureCode.CONNECT:
                            raise Fatal(f"models: {self.spec['url']} cannot be reached: {again.failure.detail}; start the server, then run again") from again
                        return again.failure
                    pause = again.pause_s if again.pause_s is not None else min(MOST_PAUSE_S, 0.5 * 2**attempt) * random.uniform(0.5, 1.0)
                await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _turn(self) -> None:
        """Wait until the rate limit lets one more request go."""
        now = time.monotonic()
        self._next_at = max(now, self._next_at + self._gap_s)
        await asyncio.sleep(self._next_at - now)

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        if request.image is not None:
            content.append({"type": "image_url", "image_url": {"url": "data:image/png;base64," + _png(request.image)}})
        content.append({"type": "text", "text": request.text})
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if request.system:
            messages.insert(0, {"role": "system", "content": request.system})
        sampling = request.sampling
        body: dict[str, Any] = {"model": self.spec["name"], "messages": messages, "max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
        if sampling.temperature > 0:
            body |= {"top_p": sampling.top_p, "seed": sampling.seed}
        if sampling.min_tokens:  # vLLM's servers know it; others may refuse the request
            body["min_tokens"] = sampling.min_tokens
        if sampling.numbers or sampling.yes_no:
            body |= {"logprobs": True, "top_logprobs": MOST_LOGPROBS}
        if sampling.choices:
            body["structured_outputs"] = {"choice": list(sampling.choices)}
        return body

    async def _post(self, body: bytes) -> dict[str, Any]:
        import aiohttp

        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=float(self.spec.get("timeout_s", 300)))
            self._session = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=concurrency(self.spec)))
            atexit.register(self.close)  # a session that is left open says so at the end of the process, over the program's last words
        headers = {"Content-Type": "application/json"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        try:
            async with self._session.post(self.url, data=body, headers=headers, allow_redirects=False) as response:
                text = await response.text(errors="replace")
                self._check(response.status, text, response.headers)
        except TimeoutError as error:
            raise _Again(Failure(FailureCode.TIMEOUT, f"no answer within {self.spec.get('timeout_s', 300)} s")) from error
        except (aiohttp.ClientConnectorError, ConnectionRefusedError) as error:
            raise _Again(Failure(FailureCode.CONNECT, str(error))) from error
        except aiohttp.ClientError as error:
            raise _Again(Failure(FailureCode.RESET, f"{type(error).__name__}: {error}")) from error
        try:
            found = json.loads(text)
        except ValueError as error:
            raise _Again(Failure(FailureCode.BAD_RESPONSE, cap_detail(f"not JSON: {self._keyless(text)[:200]}"))) from error
        return found if isinstance(found, dict) else {"error": found}

    def _key(self) -> str:
        """The key, '' for none; without the line break that files and mounted secrets end in."""
        return os.environ.get(str(self.spec.get("key_env", "OPENAI_API_KEY")), "").strip()

    def _keyless(self, text: str) -> str:
        """What a server says, without the key that some servers repeat: it becomes a row's failure, which is published."""
        key = self._key()
        return text.replace(key, HIDDEN) if len(key) >= _SHORTEST_KEY else text

    def _check(self, status: int, text: str, headers: Mapping[str, str]) -> None:
        """Raises _Again for what may pass, Fatal for a refused key and a wrong address, _Refused for what the server says of this request."""
        if status == 200:
            return
        told = cap_detail(f"HTTP {status}: {_message(self._keyless(text))}")
        if status in (401, 403):
            name = self.spec.get("key_env", "OPENAI_API_KEY")
            what = "refuses the key" if self._key() else f"asks for a key, and the environment variable {name} is not set"
            raise Fatal(f"models: {self.spec['url']} {what} ({told}); put a valid one into the environment variable {name}")
        if 300 <= status < 400:
            raise Fatal(f"models: {self.url} leads to {headers.get('Location', 'another address')} (HTTP {status}); put the right address into `url`")
        if status == 404:
            raise Fatal(f"models: {self.url}: {told}; check `url` and `name`")
        if status in (408, 429) or status >= 500:
            code = {408: FailureCode.TIMEOUT, 429: FailureCode.RATE_LIMITED}.get(status, FailureCode.HTTP_5XX)
            raise _Again(Failure(code, told), _seconds(headers.get("Retry-After")))
        raise _Refused(told)

    def _read(self, found: dict[str, Any], request: ChatRequest) -> ChatAnswer:
        choice, usage = found["choices"][0], found.get("usage") or {}
        message, ended = choice["message"], choice.get("finish_reason")
        text = _plain(message.get("content"))
        if message.get("refusal") or ended == "content_filter":
            return ChatAnswer(_plain(message.get("refusal")) or text, 0, "refused")
        yes = yes_share(first_tokens(found)) if request.sampling.yes_no else None
        reason = "length" if ended == "length" else "stop"
        return ChatAnswer(text, int(usage.get("completion_tokens") or 0), reason, int(usage.get("prompt_tokens") or 0), None, yes)

    def _checked(self, found: dict[str, Any]) -> dict[str, Any] | Failure:
        """What a server sent, if it is an answer."""
        try:
            found["choices"][0]["message"].get("content")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            return self._no_answer(found, error)
        return found

    def _no_answer(self, found: Any, error: Exception) -> Failure:
        return Failure(FailureCode.BAD_RESPONSE, cap_detail(f"no answer in {self._keyless(str(found))[:500]}: {type(error).__name__}"))


class _Refused(Exception):
    """The server's word on one request: too long, or malformed to it."""


def _plain(content: Any) -> str:
    """The text of a message: a string, or a list of parts. Halves of characters (a lone surrogate, which JSON can spell) become '?'."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part.get("type", "text") in ("text", "output_text"))
    return (content or "").encode("utf-8", "replace").decode()


def _message(text: str) -> str:
    """What an error body says."""
    try:
        error = json.loads(text).get("error", text)
        return str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        return text[:500]


def _seconds(retry_after: str | None) -> float | None:
    try:
        return None if retry_after is None else min(MOST_PAUSE_S, max(0.0, float(retry_after)))
    except ValueError:
        return None


def _png(pixels: np.ndarray) -> str:
    """An image as base64 of a PNG, which loses nothing."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return base64.b64encode(out.getvalue()).decode()
