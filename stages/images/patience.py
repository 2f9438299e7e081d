"""How long to wait before a further request: what a server asks for, and growing pauses with jitter."""

from __future__ import annotations

import random
import time
from email.utils import parsedate_to_datetime


def retry_after_s(value: str | None, now: float | None = None) -> float | None:
    """Seconds of a Retry-After header, given as seconds or as an HTTP date (RFC 9110, 10.2.3); None where it says nothing readable."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(0.0, moment - (time.time() if now is None else now))


def backoff_s(base_s: float, tries: int) -> float:
    """Pause after the n-th try: doubling from `base_s`, times a random 0.5 to 1.5, so that rows do not come back all at once."""
    return base_s * 2 ** (tries - 1) * random.uniform(0.5, 1.5)
