"""img2dataset's own downloader as an engine, and its output as plain rows: what it says of a row, in pairmill's words.

https://github.com/rom1504/img2dataset, version 1.47.0: downloader.py (statuses, messages), writer.py (files), main.py (options).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import Fatal
from schemas.outcome import FailureCode, Reason

SUCCESS = "success"
IMAGE_COLUMNS = ("jpg", "png", "webp")  # --encode_format: name of the image's column, and extension of its file
ROW_COLUMN = "pairmill_row"
_CALL = "import json, sys; from img2dataset import download; download(**json.load(sys.stdin))"
_QUIET = {"WANDB_MODE": "disabled", "NO_ALBUMENTATIONS_UPDATE": "1"}
_LOG_TAIL = 2_000

# What its error_message holds -> reason; the first that fits. Python's urllib, http.client, ssl and socket speak here.
_MESSAGES: tuple[tuple[str, str], ...] = (
    (r"X-Robots-Tag", Reason.OPTED_OUT),
    (r"hash mismatch", FailureCode.HASH_MISMATCH),
    (r"image too small", Reason.TOO_SMALL),
    (r"aspect ratio too large", Reason.ASPECT),
    (r"image area too large", FailureCode.PIXEL_LIMIT),
    (r"redirect error|infinite loop", FailureCode.TOO_MANY_REDIRECTS),
    (r"HTTP Error 429", FailureCode.RATE_LIMITED),
    (r"HTTP Error 5\d\d", FailureCode.HTTP_5XX),
    (r"HTTP Error \d\d\d", FailureCode.HTTP_4XX),
    (r"SSL|CERTIFICATE|certificate", FailureCode.TLS),
    (r"timed out", FailureCode.TIMEOUT),
    (r"Name or service not known|nodename nor servname|name resolution|getaddrinfo|No address associated", FailureCode.DNS),
    (r"IncompleteRead", FailureCode.SHORT_BODY),
    (r"Connection reset|Broken pipe|Remote end closed|Connection aborted", FailureCode.RESET),
    (r"unknown url type|no host given|nonnumeric port|URL can't contain|label (empty|too long)|codec can't encode", FailureCode.BAD_ROW),
    (r"buf\.empty\(\)", FailureCode.EMPTY_BODY),
)


def reason_of(status: str | None, message: str | None) -> str:
    """Reason or failure code of a row that img2dataset did not write. What is not known by its message is corrupt_image
    for failed_to_resize and connect for failed_to_download."""
    for pattern, code in _MESSAGES:
        if re.search(pattern, message or ""):
            return str(code)
    return str(FailureCode.CORRUPT_IMAGE if status == "failed_to_resize" else FailureCode.CONNECT)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """img2dataset's options of these names; `deadline_s` ends it as a whole, since its timeout is one of each read."""

    processes: int = 1
    threads: int = 64
    timeout_s: int = 10
    retries: int = 0
    user_agent_token: str | None = None
    honor_opt_out: bool = True
    deadline_s: float = 3600.0


@dataclass(slots=True)
class EngineRow:
    """One row of the engine: its number as given, and the body, or the status and message that it failed with."""

    row: int
    status: str
    message: str = ""
    body: bytes = b""


def check_installed() -> None:
    """Raises Fatal that says how to install it."""
    if importlib.util.find_spec("img2dataset") is None:
        raise Fatal(
            "download_img2dataset: img2dataset is not installed; install the extra pairmill[img2dataset] (docs/sources.md says how), or use `download`"
        )


def fetch_with_img2dataset(urls: list[tuple[int, str]], folder: Path, options: EngineOptions) -> Iterator[EngineRow]:
    """Run its downloader in a process of its own, with bytes kept as they come, and give back what it wrote.

    A row that it lost is missing. Raises Fatal with the end of its log where it fails as a whole.
    """
    table = pa.table({"url": [url for _, url in urls], ROW_COLUMN: pa.array([row for row, _ in urls], pa.int64())})
    pq.write_table(table, folder / "urls.parquet")
    call: dict[str, Any] = {
        "url_list": str(folder / "urls.parquet"), "input_format": "parquet", "url_col": "url", "save_additional_columns": [ROW_COLUMN],
        "output_folder": str(folder / "out"), "output_format": "parquet", "disable_all_reencoding": True, "extract_exif": False, "compute_hash": None,
        "processes_count": options.processes, "thread_count": options.threads, "timeout": options.timeout_s, "retries": options.retries,
        "number_sample_per_shard": max(1, -(-len(urls) // options.processes)), "user_agent_token": options.user_agent_token, "enable_wandb": False,
        "disallowed_header_directives": None if options.honor_opt_out else [],
    }  # fmt: skip
    log = folder / "log.txt"
    with open(log, "wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-c", _CALL], stdin=subprocess.PIPE, stdout=output, stderr=output, env={**os.environ, **_QUIET}, start_new_session=True
        )
        in_time = True
        try:
            child.communicate(json.dumps(call).encode(), timeout=options.deadline_s)
        except subprocess.TimeoutExpired:
            in_time = False  # what it finished is read; the rest are rows without an answer
        finally:
            _end(child)
    if in_time and child.returncode:
        end = log.read_bytes()[-_LOG_TAIL:].decode("utf-8", "replace").strip()
        raise Fatal(f"download_img2dataset: img2dataset ended with exit code {child.returncode}; the end of its log:\n{end}")
    for shard in sorted((folder / "out").glob("*.parquet")):
        yield from _rows_of(shard)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End its whole process group: it starts processes of its own."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def _rows_of(shard: Path) -> Iterator[EngineRow]:
    try:
        file = pq.ParquetFile(shard)
    except pa.ArrowInvalid:  # it was ended while it wrote this one
        return
    with file:
        for batch in file.iter_batches(100, columns=[ROW_COLUMN, "status", "error_message", "jpg"]):
            for row in batch.to_pylist():
                yield EngineRow(row[ROW_COLUMN], row["status"] or "", row["error_message"] or "", row["jpg"] or b"")
