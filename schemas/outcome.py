"""What can happen to a row at a stage, and the closed lists of reasons."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

MAX_DETAIL_BYTES = 4096


class Outcome(IntEnum):
    """State of one row in a stage's values file."""

    ABSENT = 0
    VALUE = 1
    FAILED = 2


class Status(IntEnum):
    """State of one row in a stage's verdicts file. SKIPPED: the row had left the run before this stage."""

    KEPT = 0
    DROPPED = 1
    FAILED = 2
    SKIPPED = 3


class Reason(StrEnum):
    """Why a row was dropped: a rule was applied and the row did not pass it."""

    DUPLICATE_ROW = "duplicate_row"
    SAME_URL = "same_url"
    REPEATED_TEXT = "repeated_text"
    EMPTY = "empty"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    TOO_FEW_WORDS = "too_few_words"
    TOO_MANY_WORDS = "too_many_words"
    BOILERPLATE = "boilerplate"
    FILE_NAME = "file_name"
    URL_TEXT = "url_text"
    EMOJI = "emoji"
    LANGUAGE = "language"
    LOW_LETTERS = "low_letters"
    REPETITION = "repetition"
    LOW_ENTROPY = "low_entropy"
    PERPLEXITY = "perplexity"
    LOW_COMPLEXITY = "low_complexity"
    NO_ACTION = "no_action"
    OPTED_OUT = "opted_out"
    ROBOTS_REFUSED = "robots_refused"
    TOO_SMALL = "too_small"
    ASPECT = "aspect"
    EXACT_DUP = "exact_dup"
    NEAR_DUP = "near_dup"
    SEMANTIC_DUP = "semantic_dup"
    LOW_CLIP = "low_clip"
    HIGH_CLIP = "high_clip"
    LOW_MLLM = "low_mllm"
    LOW_TRUST = "low_trust"
    BAD_CAPTION = "bad_caption"
    CONTAMINATED = "contaminated"
    BALANCED_OUT = "balanced_out"
    BELOW_CUT = "below_cut"
    EXPRESSION = "expression"
    NOT_LISTED = "not_listed"
    FORGOTTEN = "forgotten"
    CUSTOM = "custom"


class FailureCode(StrEnum):
    """Why a row has no value: something went wrong while it was measured."""

    BAD_ROW = "bad_row"
    MISSING_IMAGE = "missing_image"
    UNREADABLE = "unreadable"
    UNSAFE_PATH = "unsafe_path"
    FORGOTTEN = "forgotten"
    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    RESET = "reset"
    TIMEOUT = "timeout"
    HTTP_4XX = "http_4xx"
    HTTP_5XX = "http_5xx"
    RATE_LIMITED = "rate_limited"
    BAD_RESPONSE = "bad_response"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    SHORT_BODY = "short_body"
    EMPTY_BODY = "empty_body"
    TOO_LARGE = "too_large"
    NOT_AN_IMAGE = "not_an_image"
    BLOCKED_ADDRESS = "blocked_address"
    HASH_MISMATCH = "hash_mismatch"
    CORRUPT_IMAGE = "corrupt_image"
    PIXEL_LIMIT = "pixel_limit"
    UNSUPPORTED_FORMAT = "unsupported_format"
    DECODER_CRASHED = "decoder_crashed"
    DECODER_HUNG = "decoder_hung"
    DECODER_MEMORY = "decoder_memory"
    MODEL_ERROR = "model_error"
    BAD_ANSWER = "bad_answer"
    REFUSAL = "refusal"
    TRUNCATED = "truncated"
    STAGE_ERROR = "stage_error"
    WORKER_DIED = "worker_died"
    HUNG = "hung"


# Failures that may pass when tried again: they say something of the moment, not of the row.
PASSING = frozenset(
    {
        FailureCode.DNS,
        FailureCode.CONNECT,
        FailureCode.RESET,
        FailureCode.TIMEOUT,
        FailureCode.HTTP_5XX,
        FailureCode.RATE_LIMITED,
    }
)


def cap_detail(text: str) -> str:
    """Detail texts are capped at MAX_DETAIL_BYTES of UTF-8; a cut one ends in ' [cut]'."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= MAX_DETAIL_BYTES:
        return raw.decode("utf-8")
    return raw[: MAX_DETAIL_BYTES - 6].decode("utf-8", "ignore") + " [cut]"


@dataclass(frozen=True, slots=True)
class Drop:
    """Verdict of a rule that a row did not pass: the reason and the value that broke it."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """A row could not be measured: a FailureCode and what exactly was wrong."""

    code: str
    detail: str = ""
