"""Fetching many URLs on one event loop: bounded, checked at each hop, and with a reason for every failure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from yarl import URL

from schemas.outcome import PASSING, Failure, FailureCode, cap_detail
from stages.images.consent import agent_token
from stages.images.fetch_failures import FETCH_ERRORS, check_url, failure_of_error
from stages.images.host_slots import HostSlots
from stages.images.hosts import HostQueue
from stages.images.patience import backoff_s
from stages.images.request import Fetched, read_robots, request
from stages.images.resolver import Resolver
from stages.images.robots import ALLOWED, RobotsRules
from stages.images.web_client import WebClient

USER_AGENT = "Mozilla/5.0 (compatible; pairmill/0.1)"
_LONGEST_LOOKUP_S = 8.0
_LOOKUP_PAUSE_S = 3.0  # after a burst of lookups that the resolver dropped
_MORE_TRIES_WHEN_LIMITED = 3  # a host that says 429 works; it asks for time
_LOST = frozenset({FailureCode.DNS, FailureCode.CONNECT, FailureCode.TIMEOUT})


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """Limits of a fetch. `timeout_s` covers one try whole: lookup, redirects, headers and body, but no waiting for a
    host's turn; `max_bytes` one body. `per_host` and `per_host_rate` hold where no slots of a run are given.
    """

    concurrency: int = 64
    per_host: int = 16
    per_host_rate: float | None = None
    timeout_s: float = 10.0
    max_bytes: int = 32 << 20
    max_redirects: int = 5
    retries: int = 1
    backoff_s: float = 0.25
    max_wait_s: float = 60.0
    give_up_host_after: int = 50
    user_agent: str = USER_AGENT
    headers: Mapping[str, str] = field(default_factory=dict)
    proxy: str | None = None
    trust_env: bool = False
    allow_private: bool = False
    refuse_opted_out: bool = True
    robots: bool = False


Handle = Callable[[Fetched], Awaitable[None]]


@dataclass(slots=True)
class _Job:
    """One row on its way: the URL that it is at, and what its present try may still take."""

    start: URL
    url: URL
    host: str
    result: Fetched
    left_s: float
    hops: int = 0
    tries: int = 0
    limited: int = 0
    lookups: int = 0


async def fetch_all(
    urls: Sequence[str | None], options: FetchOptions, handle: Handle, slots: HostSlots | None = None
) -> None:
    """Fetch every URL and await `handle` with each result as it comes; order is that of completion.

    At most `concurrency` results exist at a time, for a worker takes its next URL when `handle` has returned.
    Raises Fatal for a fault of this machine, and what `handle` raises (which stops all); nothing for what a URL or server does.
    """
    slots = slots or HostSlots(None, options.per_host, options.per_host_rate)
    fetcher = _Fetcher(options, handle, slots)
    try:
        for row, text in enumerate(urls):
            url = check_url(text)
            if isinstance(url, Failure):
                await handle(Fetched(row, url=text or "", failure=url))
            else:
                fetcher.add(row, url)
        await fetcher.run()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the others are its echo: a Fatal or an error of `handle`
    finally:
        slots.leave_all()


class _Fetcher:
    """The workers of one `fetch_all`."""

    def __init__(self, options: FetchOptions, handle: Handle, slots: HostSlots):
        self.options, self.handle = options, handle
        self.queue: HostQueue[_Job] = HostQueue(slots, options.max_wait_s)
        self.agent = agent_token(options.user_agent)

    def add(self, row: int, url: URL) -> None:
        self.queue.add(_Job(url, url, url.raw_host or "", Fetched(row), self.options.timeout_s))

    async def run(self) -> None:
        options = self.options
        headers = {"User-Agent": options.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity", **options.headers}
        resolver = Resolver(min(_LONGEST_LOOKUP_S, 0.75 * options.timeout_s))
        async with WebClient(headers, resolver, options.proxy, options.trust_env, options.allow_private, options.concurrency) as self.client:
            self.robots = RobotsRules(lambda url: read_robots(self.client, url, options), self.agent) if options.robots else None
            async with asyncio.TaskGroup() as group:
                for _ in range(min(options.concurrency, self.queue.open)):
                    group.create_task(self._work())

    async def _work(self) -> None:
        while (found := await self.queue.take()) is not None:
            job, refusal = found
            if refusal is not None:
                job.result.failure = refusal
                self.queue.done(job, refused=True)
            elif await self._step(job):
                self.queue.done(job)
            else:
                continue
            failure = job.result.failure
            if failure is not None:
                job.result.body = b""
            await self.handle(job.result)
            self.client.give_back(job.result.body)

    async def _step(self, job: _Job) -> bool:
        """Requests until the row has its result (True), or is to be handed out again."""
        while True:
            if self.robots is not None and not (may := await self._may_ask(job)):
                return may is False
            target = await self._hop(job)
            if target is None:
                delay = self._pause_before_another_try(job)
                if delay is None:
                    return True
                self._start_again(job)
                self.queue.again(job, job.start.raw_host or "", delay)
                return False
            job.url, job.hops = target, job.hops + 1
            host = target.raw_host or ""
            if host != job.host:
                self.queue.again(job, host, 0)
                return False

    async def _may_ask(self, job: _Job) -> bool | None:
        """What the origin's robots.txt says. False: the row has its result; None: it was handed out again for its own request."""
        assert self.robots is not None
        known = self.robots.known(job.url)
        verdict = await self.robots.verdict(job.url)
        if isinstance(verdict, Failure):
            job.result.failure = verdict
            return False
        if verdict == ALLOWED and not known:
            self.queue.again(job, job.host, 0)  # robots.txt took this turn
            return None
        job.result.robots, job.result.checked_at = verdict, int(1000 * time.time())
        return verdict == ALLOWED

    async def _hop(self, job: _Job) -> URL | None:
        """One request of a row. The next URL where it redirects; else None, with the result filled in. Never raises for what a server does."""
        if job.hops > self.options.max_redirects:
            job.result.failure = Failure(FailureCode.TOO_MANY_REDIRECTS, cap_detail(f"more than {self.options.max_redirects}, last to {job.url}"))
            return None
        started = time.monotonic()
        try:
            async with asyncio.timeout(job.left_s):
                return await request(self.client, job.url, job.result, self.options, self.agent)
        except TimeoutError:
            job.result.failure = Failure(FailureCode.TIMEOUT, f"no complete answer within {self.options.timeout_s:g} s")
        except FETCH_ERRORS as error:
            job.result.failure = failure_of_error(error)
        finally:
            job.left_s = max(0.05, job.left_s - (time.monotonic() - started))
        return None

    def _pause_before_another_try(self, job: _Job) -> float | None:
        """Seconds after which a row is to be tried again; None where its result is final."""
        failure, options = job.result.failure, self.options
        if failure is None or failure.code not in PASSING:
            self.queue.answered(job.host)
            return None
        if failure.code == FailureCode.RATE_LIMITED or job.result.retry_after_s is not None:
            return self._after_limit(job, failure)
        if failure.code == FailureCode.DNS:
            job.lookups += 1
            if job.lookups == 1 and options.retries:
                return backoff_s(_LOOKUP_PAUSE_S, 1)
        else:
            job.tries += 1
            if job.tries <= options.retries:
                return backoff_s(options.backoff_s, job.tries)
        if failure.code in _LOST and (lost := self.queue.lost(job.host)) >= options.give_up_host_after:
            told = f"{job.host} did not answer {lost} rows in a row and is not asked again in this part; the last: {failure.detail}"
            self.queue.refuse(job.host, Failure(failure.code, cap_detail(told)))
        return None

    def _after_limit(self, job: _Job, failure: Failure) -> float | None:
        """The host asks for fewer requests: it is paused for all its rows."""
        job.limited += 1
        asked = job.result.retry_after_s
        pause = backoff_s(self.options.backoff_s, job.limited) if asked is None else asked
        self.queue.slow_down(job.host, pause)
        again = self.options.retries and job.limited <= self.options.retries + _MORE_TRIES_WHEN_LIMITED and pause <= self.options.max_wait_s
        return 0.0 if again else None  # the pause of the host holds for this row too

    def _start_again(self, job: _Job) -> None:
        job.url, job.hops, job.left_s = job.start, 0, self.options.timeout_s
        job.result = Fetched(job.result.row)
