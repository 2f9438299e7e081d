"""Fetching many URLs on one event loop: bounded, checked at each hop, and with a reason for every failure."""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import aiohttp
from yarl import URL

from schemas.outcome import Failure, FailureCode, cap_detail
from stages.images.addresses import make_socket
from stages.images.fetch_failures import FETCH_ERRORS, check_url, failure_of_error, failure_of_status, may_pass, opt_out
from stages.images.hosts import HostQueue

USER_AGENT = "Mozilla/5.0 (compatible; pairmill/0.1)"
AGENT_TOKEN = "pairmill"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RESOLVER_THREADS = 32  # getaddrinfo blocks; the default pool has as few as 5 threads on a small machine
_MAX_RETRY_AFTER_S = 10.0
_READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """Limits of a fetch. `timeout_s` covers one try whole: lookup, redirects, headers and body; `max_bytes` one body."""

    concurrency: int = 64
    per_host: int = 16
    timeout_s: float = 10.0
    max_bytes: int = 32 << 20
    max_redirects: int = 5
    retries: int = 1
    backoff_s: float = 0.25
    user_agent: str = USER_AGENT
    allow_private: bool = False
    refuse_opted_out: bool = True


@dataclass(slots=True)
class Fetched:
    """What came for one URL: the last response's status, content type, final URL and body, or why there is none.

    `opted_out` is the value of the header that forbids use; with `refuse_opted_out` the body was then not read.
    """

    row: int
    url: str = ""
    status: int | None = None
    content_type: str | None = None
    body: bytes = b""
    opted_out: str | None = None
    failure: Failure | None = None
    retry_after_s: float = 0.0


Handle = Callable[[Fetched], Awaitable[None]]


async def fetch_all(urls: Sequence[str | None], options: FetchOptions, handle: Handle) -> None:
    """Fetch every URL and await `handle` with each result as it comes; order is that of completion.

    At most `concurrency` results exist at a time, for a worker takes its next URL when `handle` has returned.
    Raises Fatal for a fault of this machine, and what `handle` raises; nothing for what a URL or server does.
    """
    targets: dict[int, URL] = {}
    for row, text in enumerate(urls):
        url = check_url(text)
        if isinstance(url, Failure):
            await handle(Fetched(row, url=text or "", failure=url))
        else:
            targets[row] = url
    queue = HostQueue([(row, url.raw_host or "") for row, url in targets.items()], options.per_host)
    tries = dict.fromkeys(targets, 0)
    resolver_pool = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="resolve")
    asyncio.get_running_loop().set_default_executor(resolver_pool)

    async def work(session: aiohttp.ClientSession) -> None:
        while (job := await queue.take()) is not None:
            row, host = job
            result = await _try_once(session, row, targets[row], options)
            tries[row] += 1
            if result.failure is not None and may_pass(result.failure) and tries[row] <= options.retries:
                queue.again(row, host, max(options.backoff_s * 2 ** (tries[row] - 1), result.retry_after_s))
                continue
            await handle(result)
            queue.done(host)

    try:
        async with _session(options) as session, asyncio.TaskGroup() as group:
            for _ in range(min(options.concurrency, queue.open)):
                group.create_task(work(session))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the others are its echo: a Fatal or an error of `handle`


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """Verified TLS. Kept for the process: loading the CA certificates takes tens of milliseconds."""
    return ssl.create_default_context()


def _session(options: FetchOptions) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(
        limit=0,  # HostQueue bounds what is under way; waiting inside the connector would count against the timeout
        ttl_dns_cache=300,
        ssl=_tls_context(),
        socket_factory=None if options.allow_private else make_socket,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),  # no state from one row to another
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        headers={"User-Agent": options.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
    )


async def _try_once(session: aiohttp.ClientSession, row: int, url: URL, options: FetchOptions) -> Fetched:
    """One try: every hop of it, under one timeout. Never raises for what a server does."""
    result = Fetched(row, url=str(url))
    try:
        async with asyncio.timeout(options.timeout_s):
            for _ in range(options.max_redirects + 1):
                target = await _hop(session, url, result, options)
                if target is None:
                    return result
                url = target
        result.failure = Failure(FailureCode.TOO_MANY_REDIRECTS, cap_detail(f"more than {options.max_redirects}, last to {url}"))
    except TimeoutError:
        result.failure = Failure(FailureCode.TIMEOUT, f"no complete answer within {options.timeout_s:g} s")
    except FETCH_ERRORS as error:
        result.failure = failure_of_error(error)
    result.body = b""
    return result


async def _hop(session: aiohttp.ClientSession, url: URL, result: Fetched, options: FetchOptions) -> URL | None:
    """One request. The next URL where it redirects; else None, with `result` filled in."""
    async with session.get(url, allow_redirects=False) as response:
        result.url, result.status = str(url), response.status
        result.content_type = response.headers.get("Content-Type")
        location = response.headers.get("Location")
        if response.status in _REDIRECTS and location:
            return _next_url(url, location, result)
        result.failure = failure_of_status(response.status, response.reason)
        if result.failure is not None:
            result.retry_after_s = _retry_after(response.headers.get("Retry-After"))
            return None
        if "X-Robots-Tag" in response.headers:
            result.opted_out = opt_out(response.headers, AGENT_TOKEN)
        if result.opted_out is None or not options.refuse_opted_out:
            await _read_body(response, result, options.max_bytes)
    return None


def _next_url(url: URL, location: str, result: Fetched) -> URL | None:
    target = check_url(str(url.join(URL(location))))
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
        chunks, total = [], 0
        async for chunk in response.content.iter_chunked(_READ_BYTES):
            total += len(chunk)
            if total > max_bytes:
                result.failure = too_large
                return
            chunks.append(chunk)
        result.body = b"".join(chunks)
    if not result.body:
        result.failure = Failure(FailureCode.EMPTY_BODY, f"status {response.status} with no body")


def _retry_after(value: str | None) -> float:
    """Seconds that a server asks to wait, capped; 0 where it names none (dates are left aside)."""
    return min(float(value), _MAX_RETRY_AFTER_S) if value and value.strip().isdigit() else 0.0
