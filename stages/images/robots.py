"""robots.txt (RFC 9309): one reading per origin and part, shared by all rows that ask."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from protego import Protego
from yarl import URL

from schemas.outcome import Failure, FailureCode, cap_detail

MAX_BYTES = 512_000  # RFC 9309, 2.5: at least 500 KiB must be read; what lies beyond counts as not there
ALLOWED = "allowed"


@dataclass(frozen=True, slots=True)
class RobotsFile:
    """What a server answered when it was asked for robots.txt: the rules of a 2xx, or a failure."""

    url: str
    rules: Protego | None = None
    failure: Failure | None = None

    def verdict(self, url: URL, agent: str) -> str | Failure:
        """'allowed', why the URL may not be fetched, or the failure of a row whose robots.txt could not be read.

        A 4xx means that there are no rules. A 5xx or no answer forbids for now (RFC 9309, 2.3.1.4): the row fails with
        the passing failure, so that a retry asks again.
        """
        if self.failure is not None:
            return Failure(self.failure.code, cap_detail(f"{self.url}: {self.failure.detail}"))
        if self.rules is None or self.rules.can_fetch(str(url), agent):
            return ALLOWED
        return cap_detail(f"{self.url} disallows {url.raw_path_qs} for {agent}")


Read = Callable[[URL], Awaitable[tuple[bytes, Failure | None]]]


class RobotsRules:
    """Verdicts by the robots.txt of each origin (scheme, host, port). `read` gives a URL's body and failure."""

    def __init__(self, read: Read, agent: str):
        self.read, self.agent = read, agent
        self._files: dict[URL, asyncio.Future[RobotsFile]] = {}

    def known(self, url: URL) -> bool:
        """True where the origin's robots.txt was asked for already."""
        return url.origin() in self._files

    async def verdict(self, url: URL) -> str | Failure:
        """Whether a URL may be fetched, see RobotsFile.verdict. The first caller of an origin reads its file."""
        origin = url.origin()
        pending = self._files.get(origin)
        if pending is None:
            pending = self._files[origin] = asyncio.get_running_loop().create_future()
            try:
                pending.set_result(await self._ask(origin / "robots.txt"))
            except BaseException:
                pending.cancel()
                raise
        return (await pending).verdict(url, self.agent)

    async def _ask(self, place: URL) -> RobotsFile:
        body, failure = await self.read(place)
        if failure is None:
            return RobotsFile(str(place), Protego.parse(body.decode("utf-8", "replace")))
        if failure.code in (FailureCode.HTTP_4XX, FailureCode.EMPTY_BODY, FailureCode.TOO_MANY_REDIRECTS):
            return RobotsFile(str(place))
        return RobotsFile(str(place), failure=failure)
