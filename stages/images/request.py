"""One request: status, headers and body of an answer, or the URL that it redirects to."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from yarl import URL

from schemas.outcome import Failure, FailureCode, cap_detail
from stages.images.consent import opt_out
from stages.images.fetch_failures import FETCH_ERRORS, check_url, failure_of_error, failure_of_status
from stages.images.patience import retry_after_s
from stages.images.robots import MAX_BYTES as MAX_ROBOTS_BYTES
from stages.images.web_client import WebClient

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAY_NAME_A_TIME = frozenset({429, 503})
_READ_BYTES = 1 << 16


@dataclass(slots=True)
class Fetched:
    """What came for one URL: the last response's status, content type, final URL and body, or why there is none.

    `opted_out` is the value of the header that forbids use; with `refuse_opted_out` the body was then not read.
    `robots`: 'allowed' or why robots.txt refuses, null where it was not asked. `checked_at`: when these were seen, milliseconds since 1970.
    """

    row: int
    url: str = ""
    status: int | None = None
    content_type: str | None = None
    body: bytes = b""
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
    await client.check(url)
    async with client.get(url) as response:
        result.url, result.status = str(url), response.status
        result.content_type = _readable(response.headers.get("Content-Type"))
        location = response.headers.get("Location")
        if response.status in _REDIRECTS and location:
            return _next_url(url, location, result)
        result.failure = failure_of_status(response.status, response.reason)
        if result.failure is not None:
            if response.status in _MAY_NAME_A_TIME:
                result.retry_after_s = retry_after_s(response.headers.get("Retry-After"))
            return None
        result.checked_at = int(1000 * time.time())
        if "X-Robots-Tag" in response.headers:
            result.opted_out = opt_out(response.headers, agent)
        if result.opted_out is None or not options.refuse_opted_out:
            await _read_body(response, result, options.max_bytes)
    return None


def _readable(value: str | None) -> str | None:
    """A header as text that can be stored: bytes that are no UTF-8 become question marks."""
    return None if value is None else cap_detail(value)


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


async def _read_body(response: aiohttp.ClientResponse, result: Fetched, max_bytes: int) -> None:
    """The body, never more than `max_bytes` of it, compressed or not."""
    length = response.content_length
    too_large = Failure(FailureCode.TOO_LARGE, f"more than {max_bytes} bytes")
    if length is not None and length > max_bytes:
        result.failure = too_large
        return
    if length is not None and "Content-Encoding" not in response.headers:
        result.body = await response.read()
    else:
        body = await _read_at_most(response, max_bytes + 1)
        if len(body) > max_bytes:
            result.failure = too_large
            return
        result.body = body
    if not result.body:
        result.failure = Failure(FailureCode.EMPTY_BODY, f"status {response.status} with no body")


async def _read_at_most(response: aiohttp.ClientResponse, limit: int) -> bytes:
    chunks, left = [], limit
    async for chunk in response.content.iter_chunked(_READ_BYTES):
        chunks.append(chunk[:left])
        left -= len(chunks[-1])
        if not left:
            break
    return b"".join(chunks)


async def read_robots(client: WebClient, url: URL, options: RequestOptions) -> tuple[bytes, Failure | None]:
    """robots.txt at `url`, redirects followed: the first part of its body, and the failure where there is none."""
    try:
        async with asyncio.timeout(options.timeout_s):
            for _ in range(options.max_redirects + 1):
                await client.check(url)
                async with client.get(url) as response:
                    location = response.headers.get("Location")
                    if response.status not in _REDIRECTS or not location:
                        failure = failure_of_status(response.status, response.reason)
                        return (b"", failure) if failure else (await _read_at_most(response, MAX_ROBOTS_BYTES), None)
                target = check_url(str(url.join(URL(location))))
                if isinstance(target, Failure):
                    return b"", target
                url = target
    except TimeoutError:
        return b"", Failure(FailureCode.TIMEOUT, f"no complete answer within {options.timeout_s:g} s")
    except FETCH_ERRORS as error:
        return b"", failure_of_error(error)
    return b"", Failure(FailureCode.TOO_MANY_REDIRECTS, f"more than {options.max_redirects}")
