"""The planted faults: how often each stands in the rendered web, and which pairmill reason must name it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Fault:
    """`share` of the rows; `reason` is what pairmill must say ('' for a good row); `least` rows stand in any world."""

    share: float
    reason: str
    least: int = 1


FAULTS: Final[dict[str, Fault]] = {
    "mismatch": Fault(0.27, "low_clip"),
    "boilerplate": Fault(0.055, "boilerplate"),
    "other_language": Fault(0.055, "language"),
    # duplicates: each repeats a clean row that stands before it
    "duplicate_row": Fault(0.018, "duplicate_row"),
    "same_url": Fault(0.018, "same_url"),
    "exact_dup": Fault(0.021, "exact_dup"),
    "re_encoded": Fault(0.006, "near_dup"),
    # damaged files
    "truncated": Fault(0.015, "corrupt_image"),
    "damaged": Fault(0.015, "corrupt_image"),
    "not_an_image": Fault(0.014, "not_an_image"),
    "empty_body": Fault(0.008, "empty_body"),
    "short_body": Fault(0.005, "short_body"),
    # dead links
    "dead_link_404": Fault(0.035, "http_4xx"),
    "dead_link_dns": Fault(0.010, "dns"),
    "dead_link_connect": Fault(0.010, "connect"),
    # other texts
    "file_name": Fault(0.008, "file_name"),
    "url_in_text": Fault(0.004, "url_text"),
    "too_short": Fault(0.004, "too_short"),
    "one_word": Fault(0.005, "too_few_words"),
    "empty": Fault(0.004, "empty", least=3),
    "low_letters": Fault(0.005, "low_letters"),
    "repetition": Fault(0.005, "repetition"),
    "repeated_text": Fault(0.005, "repeated_text", least=15),
    # other answers and images
    "http_500": Fault(0.004, "http_5xx"),
    "too_many_redirects": Fault(0.003, "too_many_redirects"),
    "slow_timeout": Fault(0.002, "timeout"),
    "opted_out": Fault(0.005, "opted_out"),
    "tiny": Fault(0.005, "too_small"),
    "bad_aspect": Fault(0.005, "aspect"),
}
CLEAN: Final = "clean"
COPIES: Final = frozenset({"duplicate_row", "same_url", "exact_dup", "re_encoded"})
DUPLICATES: Final = frozenset({"duplicate_row", "same_url", "exact_dup"})
DAMAGED: Final = frozenset({"truncated", "damaged", "not_an_image", "empty_body", "short_body"})
DEAD_LINKS: Final = frozenset({"dead_link_404", "dead_link_dns", "dead_link_connect"})
UNDECODABLE: Final = frozenset({"truncated", "damaged", "not_an_image", "empty_body"})
MIN_ROWS: Final = 200


def fault_counts(rows: int) -> dict[str, int]:
    """Rows per fault; 'clean' comes first and takes what is left.

    Raises:
        ValueError: rows is too small to hold each fault.
    """
    if rows < MIN_ROWS:
        raise ValueError(f"rows {rows} cannot hold every fault; use {MIN_ROWS} or more")
    counts = {name: max(fault.least, round(fault.share * rows)) for name, fault in FAULTS.items()}
    return {CLEAN: rows - sum(counts.values()), **counts}


def expected_reason(fault: str) -> str:
    """The pairmill reason that must fire for a fault; '' for a clean row."""
    return "" if fault == CLEAN else FAULTS[fault].reason
