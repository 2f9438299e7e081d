"""Answers of models by the hash of their request, kept in the run directory, so that what was answered is never asked again."""

from __future__ import annotations

import hashlib
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files import commit_bytes, parquet_source, remove_files
from pipeline.storage import Place
from pipeline.store import Store, parquet_bytes

CACHE = "cache"
FLUSH_ANSWERS = 512
FLUSH_SECONDS = 5.0
MOST_FILES = 8  # of one part and model; then they become one
_SCHEMA = pa.schema([("key", pa.binary(32)), ("answer", pa.string())])


class AnswerCache:
    """Answers of one model for one part: files `cache/<model digest>/part-00000.<digest>.parquet`, each committed as a whole.

    Answers that have come are written after FLUSH_ANSWERS of them or FLUSH_SECONDS, by `flush_due`; a kill loses those not yet written.
    `put` may be called from any thread, the rest from the one that works on the part (one task at a time works on a part).
    """

    def __init__(self, store: Store, model_digest: str, part: int, read: bool = True):
        self.store = store
        self.folder: Place = store.root / CACHE / model_digest
        self.part = part
        self._lock = threading.Lock()
        self._fresh: dict[bytes, str] = {}
        self._flushed_at = time.monotonic()
        self._files: list[Place] = sorted(self.folder.glob(f"part-{part:05d}.*.parquet"), key=str)
        self._known: dict[bytes, str] = self._read_all() if read else {}

    def get(self, key: bytes) -> str | None:
        """The answer to a request, or None."""
        with self._lock:
            return self._known.get(key)

    def put(self, key: bytes, answer: str) -> None:
        """Keep an answer."""
        with self._lock:
            self._known[key] = self._fresh[key] = answer

    def flush_due(self) -> None:
        """Write what has come, where that is much or some time ago."""
        with self._lock:
            due = self._fresh and (len(self._fresh) >= FLUSH_ANSWERS or time.monotonic() - self._flushed_at >= FLUSH_SECONDS)
        if due:
            self.flush()

    def flush(self) -> None:
        """Write all that has come; many small files of a part become one."""
        with self._lock:
            fresh, self._fresh = self._fresh, {}
        self._flushed_at = time.monotonic()
        if fresh:
            self._files.append(self._commit(fresh))
        if len(self._files) > MOST_FILES:
            merged = self._commit(self._read_all())
            remove_files([path for path in self._files if path != merged])
            self._files = [merged]

    def _commit(self, answers: dict[bytes, str]) -> Place:
        keys = sorted(answers)
        table = pa.table([pa.array(keys, pa.binary(32)), pa.array([answers[key] for key in keys], pa.string())], schema=_SCHEMA)
        digest = hashlib.sha256(b"".join(key + answers[key].encode() for key in keys)).hexdigest()[:16]
        path = self.folder / f"part-{self.part:05d}.{digest}.parquet"
        commit_bytes(path, parquet_bytes(table, None, "zstd"), self.store.guard)
        return path

    def _read_all(self) -> dict[bytes, str]:
        known: dict[bytes, str] = {}
        for path in self._files:
            with pq.ParquetFile(parquet_source(path), memory_map=False) as file:
                table = file.read(use_threads=False)
            known.update(zip(table["key"].to_pylist(), table["answer"].to_pylist(), strict=True))
        return known
