"""What Retry-After says, and how pauses grow."""

from __future__ import annotations

import pytest

from stages.images.patience import backoff_s, retry_after_s

NOW = 1_445_412_480.0  # Wed, 21 Oct 2015 07:28:00 GMT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0), (" 0 ", 0.0), ("Wed, 21 Oct 2015 07:28:30 GMT", 30.0), ("Wed, 21 Oct 2015 07:27:00 GMT", 0.0),
        ("Wednesday, 21-Oct-15 07:29:00 GMT", 60.0), (None, None), ("", None), ("soon", None), ("-5", None), ("1.5", None),
        ("9" * 400, 999_999_999.0), ("²", None), ("Wed, 99 Oct 2015 07:28:30 GMT", None),
    ],
)  # fmt: skip
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, NOW) == seconds


def test_pauses_double_and_differ() -> None:
    for tries, least, most in ((1, 0.5, 1.5), (2, 1.0, 3.0), (4, 4.0, 12.0)):
        found = {backoff_s(1.0, tries) for _ in range(50)}
        assert least <= min(found) and max(found) <= most and len(found) > 40
