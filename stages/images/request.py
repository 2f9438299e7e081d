"""One request: status, headers and body of an answer, or the URL that it redirects to."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Protocol

from yarl import URL

from schemas.outcome import Failure, FailureCode, cap_detail
from stages.images.buffers import Bytes
from stages.images.consent import opt_out
from stages.images.fetch_failures import FETCH_ERRORS, check_url, failure_of_error, failure_of_status
from stages.images.http_message import Head
from stages.images.patience import retry_after_s
from stages.images.robots import MAX_BYTES as MAX_ROBOTS_BYTES
from stages.images.web_client import WebClient

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAY_NAME_A_TIME = frozenset({429, 503})


@dataclass(slots=True)
class Fetched:
    """What came for one URL: the last response's status, content type, final URL and body, or why there is none.

    `opted_out` is the value of the header that forbids use; with `refuse_opted_out` the body was then not read.
    A body that is a memoryview is there until what was awaited for it has returned: its memory then serves another.
    `robots`: 'allowed' or why robots.txt refuses, null where it was not asked. `checked_at`: when these were seen, milliseconds since 1970.
    """

    row: int
    url: str = ""
    status: int | None = None
    content_type: str | None = None
    body: Bytes = b""
    opted_out: str | None = None
    robots: str | None = None
    checked_at: int | None = None
    failure: Failure | None = None
    retry_after_s: float | None = None


class RequestOptions(Protocol):
    """The options that a single request follows; see FetchOptions."""

    @property
    def timeout_s(self) -> float: ...
    @property
    def max_bytes(self) -> int: ...
    @property
    def max_redirects(self) -> int: ...
    @property
    def refuse_opted_out(self) -> bool: ...


async def request(client: WebClient, url: URL, result: Fetched, options: RequestOptions, agent: str) -> URL | None:
    """GET `url`. The next URL where it redirects; else None, with `result` filled in. Raises FETCH_ERRORS."""
    location: str | None = None

    def wants(head: Head) -> int:
        nonlocal location
        result.url, result.status = str(url), head.status
        content_type = head.headers.get("Content-Type")
        result.content_type = None if content_type is None else cap_detail(content_type)
        location = head.headers.get("Location") if head.status in _REDIRECTS else None
        if location:
            return 0
        result.failure = failure_of_status(head.status, head.reason)
        if result.failure is not None:
            if head.status in _MAY_NAME_A_TIME:
                result.retry_after_s = retry_after_s(head.headers.get("Retry-After"))
            return 0
        result.checked_at = int(1000 * time.time())
        if "X-Robots-Tag" in head.headers:
            result.opted_out = opt_out(head.headers, agent)
        return 0 if result.opted_out is not None and options.refuse_opted_out else options.max_bytes

    answer = await client.get(url, wants)
    if location:
        return _next_url(url, location, result)
    if result.failure is None and (result.opted_out is None or not options.refuse_opted_out):
        if answer.cut:
            result.failure = Failure(FailureCode.TOO_LARGE, f"more than {options.max_bytes} bytes")
        elif not answer.body:
            result.failure = Failure(FailureCode.EMPTY_BODY, f"status {result.status} with no body")
        else:
            result.body = answer.body
    return None


def _next_url(url: URL, location: str, result: Fetched) -> URL | None:
    try:
        joined = url.join(URL(location))
    except ValueError as error:
        result.failure = Failure(FailureCode.BAD_RESPONSE, cap_detail(f"redirect to what is no URL: {error}: {location}"))
        return None
    target = check_url(str(joined))
    if isinstance(target, Failure):
        result.failure = Failure(target.code, cap_detail(f"redirect from {url}: {target.detail}"))
        return None
    return target


async def read_robots(client: WebClient, url: URL, options: RequestOptions) -> tuple[bytes, Failure | None]:
    """robots.txt at `url`, redirects followed: the first part of its body, and the failure where there is none."""
    try:
        async with asyncio.timeout(options.timeout_s):
            for _ in range(options.max_redirects + 1):
                answer = await client.get(url, lambda head: MAX_ROBOTS_BYTES if 200 <= head.status < 300 else 0)
                location = answer.head.headers.get("Location")
                if answer.head.status not in _REDIRECTS or not location:
                    failure = failure_of_status(answer.head.status, answer.head.reason)
                    return (b"", failure) if failure else (bytes(answer.body), None)
                target = check_url(str(url.join(URL(location))))
                if isinstance(target, Failure):
                    return b"", target
                url = target
    except TimeoutError:
        return b"", Failure(FailureCode.TIMEOUT, f"no complete answer within {options.timeout_s:g} s")
    except FETCH_ERRORS as error:
        return b"", failure_of_error(error)
    return b"", Failure(FailureCode.TOO_MANY_REDIRECTS, f"more than {options.max_redirects}")
