"""The one map from what can go wrong during a fetch to the closed list of failure codes."""

from __future__ import annotations

import errno
import socket
import ssl

import aiohttp
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError
from yarl import URL

from pipeline.errors import DISK_ERRNOS, Fatal
from schemas.outcome import Failure, FailureCode, cap_detail
from stages.images.addresses import BlockedAddress
from stages.images.http_message import BadResponse

# Everything that a hostile URL or server can make aiohttp, yarl, ssl or the sockets raise. UnicodeError is a ValueError.
FETCH_ERRORS = (aiohttp.ClientError, HttpProcessingError, OSError, EOFError, ValueError)

_RESET_ERRNOS = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED})


def failure_of_error(error: BaseException) -> Failure:
    """The failure that an exception of a fetch is. Raises Fatal where the machine is at fault (open files, disk)."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, OSError) and cause.errno in DISK_ERRNOS:
        raise Fatal(f"download: {cause}: raise the limit of open files (ulimit -n) or lower `concurrency`") from error
    return Failure(_code(error, cause), cap_detail(f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__))


def _code(error: BaseException, cause: BaseException) -> FailureCode:
    if isinstance(cause, BlockedAddress) or "is not a public address" in str(cause):  # several blocked ones come joined
        return FailureCode.BLOCKED_ADDRESS
    if isinstance(error, aiohttp.ClientConnectorDNSError) or isinstance(cause, socket.gaierror):
        return FailureCode.DNS
    if isinstance(error, (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch)) or isinstance(cause, ssl.SSLError):
        return FailureCode.TLS
    number = cause.errno if isinstance(cause, OSError) else None  # aiohttp's ClientOSError keeps the number, not the class
    if isinstance(cause, TimeoutError) or number == errno.ETIMEDOUT:
        return FailureCode.TIMEOUT
    if number in _RESET_ERRNOS or isinstance(cause, (ConnectionResetError, aiohttp.ServerDisconnectedError)):
        return FailureCode.RESET
    if isinstance(error, aiohttp.ClientPayloadError):
        if isinstance(error.__cause__, ContentEncodingError):
            return FailureCode.BAD_RESPONSE
        # aiohttp gives a reset in mid-body only as text: its cause is always the unfinished length.
        return FailureCode.RESET if "ConnectionResetError" in str(error) else FailureCode.SHORT_BODY
    if isinstance(error, BadResponse):
        return FailureCode.BAD_RESPONSE
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return FailureCode.CONNECT
    if isinstance(error, (aiohttp.ClientResponseError, HttpProcessingError)):
        return FailureCode.BAD_RESPONSE
    if isinstance(error, (aiohttp.InvalidURL, ValueError)):
        return FailureCode.BAD_ROW
    if isinstance(cause, EOFError):
        return FailureCode.SHORT_BODY
    return FailureCode.CONNECT


def failure_of_status(status: int, reason: str | None) -> Failure | None:
    """The failure that a final status is; None for 2xx."""
    if 200 <= status < 300:
        return None
    detail = cap_detail(f"status {status} {reason or ''}".rstrip())
    if status == 429:
        return Failure(FailureCode.RATE_LIMITED, detail)
    return Failure(FailureCode.HTTP_5XX if 500 <= status < 600 else FailureCode.HTTP_4XX, detail)


def check_url(text: str | None) -> URL | Failure:
    """The URL to fetch, or why it is none. What a URL may not hold (spaces, other scripts) is quoted as browsers do."""
    if not text or not text.strip():
        return Failure(FailureCode.BAD_ROW, "url is empty")
    text = text.strip()
    try:
        url = URL(text)
        if url.scheme in ("", "file"):
            return Failure(FailureCode.BLOCKED_ADDRESS, cap_detail(f"local path, not fetched over HTTP: {text}"))
        if url.scheme not in ("http", "https"):
            return Failure(FailureCode.BAD_ROW, cap_detail(f"scheme {url.scheme!r} is not http or https: {text}"))
        if not url.host:
            return Failure(FailureCode.BAD_ROW, cap_detail(f"url names no host: {text}"))
        return url
    except ValueError as error:
        return Failure(FailureCode.BAD_ROW, cap_detail(f"url cannot be read: {error}: {text}"))
