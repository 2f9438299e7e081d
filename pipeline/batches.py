"""Runs a stage's `compute` (or its model) over the rows of a part that need it, one row's trouble at a time."""

from __future__ import annotations

import faulthandler
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.answer_cache import AnswerCache
from pipeline.asking import Asking
from pipeline.blobs import ImageRef
from pipeline.budget import Breaker
from pipeline.chain import Node
from pipeline.environment import Environment
from pipeline.errors import as_fatal, failure_of, is_fatal
from pipeline.packing import Computed, all_failed, join, pack
from pipeline.stage import Context, Stage
from pipeline.storage import ObjectPath, Place
from pipeline.view import PartView, mappings
from schemas.outcome import Failure, FailureCode

if TYPE_CHECKING:
    from pipeline.image_windows import ImageWindows

WINDOW = 3  # batches in flight at a model: one computing, one waiting, one being prepared


class Hung(Exception):
    """A call took longer than its stage allows."""


@contextmanager
def deadline(seconds: float | None, hard: bool) -> Iterator[None]:
    """Raise Hung after `seconds` (in the main thread). `hard`: where even that does not come through, end the process."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: Any) -> None:
        raise Hung(f"no answer within {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    if hard:
        faulthandler.dump_traceback_later(2 * seconds + 1, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        if hard:
            faulthandler.cancel_dump_traceback_later()


@dataclass
class Started:
    """A batch at the model: its rows as the stage sees them, and the answers to come; `pieces`: what is computed already."""

    batch: np.ndarray
    rows: list[Any]
    pending: Future[Any] | None = None
    pieces: list[tuple[np.ndarray, Computed]] = field(default_factory=list)


class BatchRunner:
    """One stage on one part. `run` takes row indices and gives back their values, whatever single rows do."""

    def __init__(self, node: Node, stage: Stage, view: PartView, env: Environment, context: Context, breaker: Breaker):
        self.node = node
        self.stage = stage
        self.view = view
        self.env = env
        self.context = context
        self.breaker = breaker
        self.calls = 0
        self.tokens = (0, 0)
        self.images: ImageWindows | None = None
        self._asking: Asking | None = None

    def run(self, rows: np.ndarray) -> Computed:
        """Compute rows (int64 indices into the part). Raises Fatal for what no row is to blame for."""
        started = self.context.model.seconds() if self.context.model else 0.0
        done: list[tuple[np.ndarray, Computed]] = []
        if len(rows):
            self.images = self.plan_images(rows)
            if self.stage.asks_each:
                self.open_cache()
            batches = list(self._batches(rows))
            run = self._with_model if self.stage.uses_model else self._plainly
            try:
                for batch, computed in run(batches):
                    self._count(batch, computed.failures)
                    done.append((batch, computed))
            finally:
                self.close_cache()
        computed = join(self.node, done)
        computed.calls, computed.tokens = self.calls, self.tokens
        computed.model_seconds = self.context.model.seconds() - started if self.context.model else 0.0
        return computed

    def begin(self, batch: np.ndarray, shared: dict[Any, Any]) -> Started:
        """Send one batch to the model: for what lets batches of several stages be under way at a time. shared: see Context."""
        rows = self._rows(batch)
        try:
            return Started(batch, rows, self._submit(batch, rows, shared))
        except Exception as error:
            return Started(batch, rows, pieces=list(self._after_error(batch, error)))

    def end(self, started: Started) -> Computed:
        """Wait for a batch; its rows count for the budget."""
        pieces = started.pieces if started.pending is None else list(self._drain(started.batch, started.rows, started.pending))
        for batch, computed in pieces:
            self._count(batch, computed.failures)
        return join(self.node, pieces)

    def _count(self, batch: np.ndarray, failures: list[Failure | None]) -> None:
        if not any(failures) and not self.breaker.reported:
            self.breaker.count_values(len(batch))
            return
        for row, failure in zip(batch.tolist(), failures, strict=True):
            self.breaker.count(row, failure)

    def _batches(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        isolation = self.env.isolation
        if isolation is not None and isolation.node == self.node.index:
            suspect = np.isin(rows, list(isolation.suspects))
            careful = rows[suspect]
            for start in range(0, len(careful), max(1, isolation.step)):
                yield careful[start : start + max(1, isolation.step)]
            rows = rows[~suspect]
        size = self.stage.batch_size or max(1, len(rows))
        for start in range(0, len(rows), size):
            yield rows[start : start + size]

    def _plainly(self, batches: list[np.ndarray]) -> Iterator[tuple[np.ndarray, Computed]]:
        for batch in batches:
            yield from self._isolated(batch)

    def _with_model(self, batches: list[np.ndarray]) -> Iterator[tuple[np.ndarray, Computed]]:
        """Keep WINDOW batches in flight: the next is prepared here while the model works on the one before."""
        waiting: deque[tuple[np.ndarray, list[Any], Future[Any]]] = deque()
        for batch in batches:
            if self._guilty(batch) is not None:
                yield from self._isolated(batch)
                continue
            rows = self._rows(batch)
            try:
                waiting.append((batch, rows, self._submit(batch, rows)))
            except Exception as error:
                yield from self._after_error(batch, error)
            if len(waiting) >= WINDOW:
                yield from self._drain(*waiting.popleft())
        while waiting:
            yield from self._drain(*waiting.popleft())

    def _submit(self, batch: np.ndarray, rows: list[Any], shared: dict[Any, Any] | None = None) -> Future[Any]:
        assert self.context.model is not None
        self.context.shared = {} if shared is None else shared
        self.env.note(self.node, self.view.part, batch.tolist())
        request = self.stage.prepare(rows, self.context)
        if self._asking is not None:
            return self._asking.ask(request)
        self.calls += 1
        return self.context.model.submit(self.stage.model_method, request)

    def open_cache(self, cache: AnswerCache | None = None) -> AnswerCache:
        """The cached answers of this part, or those that another stage of it has opened. Where failures are to be tried again, their
        requests are sent, not looked up."""
        model, part = self.context.model, self.view.part
        assert model is not None
        if cache is None:
            cache = AnswerCache(self.env.store, model.digest, part, read=not self.env.retry.codes(self.node.name, part))
        self._asking = Asking(model, self.stage.model_method, cache)
        return cache

    def close_cache(self) -> None:
        """Write the answers that have come."""
        if self._asking is not None:
            self._asking.close()
            self.calls, self.tokens = self._asking.sent, self._asking.tokens

    def _drain(self, batch: np.ndarray, rows: list[Any], future: Future[Any]) -> Iterator[tuple[np.ndarray, Computed]]:
        try:
            answer = future.result(self.stage.batch_timeout_s)
            computed = pack(self.node, self.stage.finish(rows, answer, self.context), len(rows))
        except Exception as error:
            yield from self._after_error(batch, error)
        else:
            yield batch, computed

    def _isolated(self, batch: np.ndarray) -> Iterator[tuple[np.ndarray, Computed]]:
        """One batch; halved when it raises, until the guilty row stands alone and becomes a Failure."""
        guilty = self._guilty(batch)
        if guilty is not None:
            yield batch, all_failed(self.node, guilty, 1)
            return
        try:
            computed = self._attempt(batch)
        except Exception as error:
            yield from self._after_error(batch, error)
        else:
            yield batch, computed

    def _after_error(self, batch: np.ndarray, error: Exception) -> Iterator[tuple[np.ndarray, Computed]]:
        if is_fatal(error):
            raise as_fatal(error, f"{self.node.name}, part {self.view.part}") from error
        if len(batch) == 1:
            hung = isinstance(error, Hung)
            failure = Failure(FailureCode.HUNG, str(error)) if hung else failure_of(error)
            yield batch, all_failed(self.node, failure, 1)
            return
        middle = len(batch) // 2
        yield from self._isolated(batch[:middle])
        yield from self._isolated(batch[middle:])

    def _guilty(self, batch: np.ndarray) -> Failure | None:
        isolation = self.env.isolation
        if isolation is None or isolation.node != self.node.index or len(batch) != 1:
            return None
        detail = isolation.guilty.get(int(batch[0]))
        return None if detail is None else Failure(FailureCode.WORKER_DIED, detail)

    def _attempt(self, batch: np.ndarray) -> Computed:
        rows = self._rows(batch)
        if self.stage.uses_model:
            answer = self._submit(batch, rows).result(self.stage.batch_timeout_s)
            return pack(self.node, self.stage.finish(rows, answer, self.context), len(rows))
        self.env.note(self.node, self.view.part, batch.tolist())
        self.context.report = lambda place, outcome: self.breaker.count(int(batch[place]), outcome if isinstance(outcome, Failure) else None)
        with deadline(self.stage.batch_timeout_s, hard=self.env.notes is not None):
            answers = self.stage.compute(rows, self.context)
        self.calls += 1
        return pack(self.node, answers, len(rows))

    def _rows(self, batch: np.ndarray) -> list[Any]:
        """Read-only mappings limited to what the stage reads; `image` is an ImageRef (None where none is stored)."""
        key = (tuple(self.node.reads.items()), batch.tobytes())
        if self.view.last_rows[0] == key:
            return list(self.view.last_rows[1])
        table = self.view.table(dict(self.node.reads), batch)
        rows = mappings(table, [name for name in table.column_names if not name.startswith("image.")])
        if "image.tar" in table.column_names:
            folder, places = self._blobs(), _places(table)
            for row, (tar, offset, size) in zip(rows, places, strict=True):
                if tar is None:
                    row["image"] = None
                else:
                    row["image"] = self.images.image((tar, offset, size)) if self.images else ImageRef(folder / tar, offset, size)
        proxies = list(map(MappingProxyType, rows))
        if not any(pa.types.is_nested(kind) for kind in table.schema.types) and "image.tar" not in table.column_names:
            self.view.last_rows = (key, proxies)  # flat values only: a list could be changed in place by a stage
            return list(proxies)
        return proxies

    def _blobs(self) -> Place:
        """Folder of the stored images that the stage reads."""
        owner = self.node.reads["image.tar"]
        assert owner is not None
        return self.env.store.blobs(self.view.chain.nodes[owner.node].name)

    def plan_images(self, rows: np.ndarray) -> ImageWindows | None:
        """Where images lie in object storage: a plan to fetch those of all rows in few requests."""
        if "image.tar" not in self.node.reads or not isinstance(folder := self._blobs(), ObjectPath):
            return None
        from pipeline.image_windows import ImageWindows

        refs = {name: ref for name, ref in self.node.reads.items() if name.startswith("image.")}
        places = [place for place in _places(self.view.table(refs, rows)) if place[0] is not None]
        return ImageWindows(folder, places)


def _places(table: pa.Table) -> list[tuple[Any, ...]]:
    """(tar, offset, size) of each row's image, nulls where none is stored."""
    return list(zip(*(table[f"image.{name}"].to_pylist() for name in ("tar", "offset", "size")), strict=True))
