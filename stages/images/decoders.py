"""Decoding of untrusted bytes, as stages see it: futures of images, crops and pixels, or of the row's failure."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from schemas.outcome import Failure, FailureCode
from stages.images.buffers import Bytes
from stages.images.decode import DEFAULT_PIXEL_LIMIT
from stages.images.decode_tasks import Facts, perform, task_bytes
from stages.images.normalize import ImageRules, StoredImage

if TYPE_CHECKING:
    from stages.images.leaks import Look

Made = TypeVar("Made")
_MOST_PROCESSES = 8


@dataclass(frozen=True, slots=True)
class DecoderLimits:
    """`processes` per worker (None: one per core, at most 8), seconds and private memory for one image."""

    processes: int | None = None
    timeout_s: float = 20.0
    memory_mb: int = 1536

    @property
    def count(self) -> int:
        return self.processes or processes_for(1)


def processes_for(workers: int) -> int:
    """How many decoders keep a worker's share of the cores busy."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_PROCESSES, cores // workers))


@dataclass(frozen=True, slots=True)
class Normalized:
    """An image to store, with the SHA-256 of the bytes as they came and as they are stored."""

    image: StoredImage
    raw_sha256: bytes
    image_sha256: bytes


class Decoders:
    """What decodes. Futures end with a result or a Failure; they raise Fatal where decoding cannot go on at all."""

    def submit(self, task: bytes, data: Bytes, make: Callable[[Facts, bytes], Made]) -> Future[Made | Failure]:
        """Queue a task; `make` builds its result from facts and payload."""
        raise NotImplementedError

    def close(self) -> None:
        """End all that was started for this."""

    def normalize(self, data: Bytes, rules: ImageRules) -> Future[Normalized | Failure]:
        """The image to store, see `stages.images.normalize`."""
        return self.submit(_rules_task(rules), data, functools.partial(_normalized, data))

    def check(self, data: bytes, pixel_limit: int = DEFAULT_PIXEL_LIMIT) -> Future[str | Failure]:
        """Format of an image all of whose data was read."""
        return self.submit(task_bytes("check", pixel_limit=pixel_limit), data, lambda facts, _: str(facts["format"]))

    def pixels(self, data: bytes, pixel_limit: int = DEFAULT_PIXEL_LIMIT, min_width: int = 0, min_height: int = 0) -> Future[np.ndarray | Failure]:
        """Pixels uint8 [H, W, 3], see `stages.images.decode.decode`."""
        return self.submit(task_bytes("pixels", pixel_limit=pixel_limit, min_width=min_width, min_height=min_height), data, _array)

    def crop(self, data: bytes, size: int, mode: str = "shortest", filter: str = "bicubic") -> Future[np.ndarray | Failure]:
        """Pixels uint8 [size, size, 3], see `stages.images.crop`."""
        return self.submit(task_bytes("crop", size=size, mode=mode, filter=filter), data, _array)

    def fit(self, data: bytes, max_pixels: int) -> Future[np.ndarray | Failure]:
        """Pixels uint8 [H, W, 3] of at most `max_pixels` pixels, see `stages.images.fit`."""
        return self.submit(task_bytes("fit", max_pixels=max_pixels), data, _array)

    def hashes(self, data: bytes, pixel_limit: int = DEFAULT_PIXEL_LIMIT, **wanted: bool) -> Future[dict[str, Any] | Failure]:
        """Columns of `image_hash`, see `stages.images.hashes.hash_image`."""
        return self.submit(task_bytes("hashes", pixel_limit=pixel_limit, **wanted), data, _hash_columns)

    def looks(self, data: bytes, mirrored: bool, pixel_limit: int = DEFAULT_PIXEL_LIMIT) -> Future[list[Look] | Failure]:
        """How a row is compared with evaluation pictures, see `stages.images.leaks.looks`."""
        return self.submit(task_bytes("looks", pixel_limit=pixel_limit, mirrored=mirrored), data, _looks)

    def indexed(self, data: bytes, pdq: bool, pixel_limit: int = DEFAULT_PIXEL_LIMIT) -> Future[dict[str, Any] | Failure]:
        """Hash columns of an index file (`stages.index.files`)."""
        return self.submit(task_bytes("indexed", pixel_limit=pixel_limit, pdq=pdq), data, _index_columns)

    def decode_pixels(self, images: Iterable[bytes], **options: int) -> list[np.ndarray | Failure]:
        """`pixels` of several images, decoded side by side, in their order."""
        return [future.result() for future in [self.pixels(data, **options) for data in images]]


class InProcess(Decoders):
    """Decoding in threads of this process, for systems without what the sandbox needs: a crash of a codec ends the worker."""

    def __init__(self, limits: DecoderLimits):
        self._threads = ThreadPoolExecutor(limits.count, thread_name_prefix="decode")

    def submit(self, task: bytes, data: Bytes, make: Callable[[Facts, bytes], Made]) -> Future[Made | Failure]:
        return self._threads.submit(self._run, task, data, make)

    def _run(self, task: bytes, data: Bytes, make: Callable[[Facts, bytes], Made]) -> Made | Failure:
        facts, payload = perform(task, bytes(data))
        return failure_in(facts) or make(facts, bytes(payload))

    def close(self) -> None:
        self._threads.shutdown()


_shared: dict[tuple[int, DecoderLimits], Decoders] = {}  # by process id too: a fork has no part in its parent's decoders


def shared_decoders(limits: DecoderLimits, workers: int = 1) -> Decoders:
    """The decoders of this process with these limits, started now if they are not there yet, and kept."""
    if limits.processes is None:
        limits = DecoderLimits(processes_for(workers), limits.timeout_s, limits.memory_mb)
    key = (os.getpid(), limits)
    if key not in _shared:
        _shared[key] = _start(limits)
    return _shared[key]


def _start(limits: DecoderLimits) -> Decoders:
    if not sandbox_possible():
        warnings.warn("images are decoded without a sandbox on this system: a file that crashes a codec ends its worker", stacklevel=3)
        return InProcess(limits)
    from stages.images.sandbox import Sandbox

    return Sandbox(limits)


@functools.cache
def sandbox_possible() -> bool:
    """True on Linux with memfd and pidfd (kernel 5.3 or later)."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open") or not hasattr(os, "memfd_create"):
        return False
    with contextlib.suppress(OSError):
        os.close(os.pidfd_open(os.getpid()))
        os.close(os.memfd_create("probe"))
        return True
    return False


def failure_in(facts: Facts) -> Failure | None:
    """The failure of an image, where the facts hold one."""
    told = facts.get("failure")
    return Failure(FailureCode(told[0]), told[1]) if told else None


@functools.lru_cache(maxsize=64)
def _rules_task(rules: ImageRules) -> bytes:
    return task_bytes("normalize", **asdict(rules))


def _normalized(data: Bytes, facts: Facts, payload: bytes) -> Normalized:
    sizes = (facts["width"], facts["height"], facts["original_width"], facts["original_height"])
    image = StoredImage(data if facts["kept"] else payload, facts["format"], *sizes)
    return Normalized(image, bytes.fromhex(facts["raw_sha256"]), bytes.fromhex(facts["image_sha256"]))


def _hash_columns(facts: Facts, payload: bytes) -> dict[str, Any]:
    columns = {"phash": bytes.fromhex(facts["phash"]), "phash_quality": facts["quality"], "phash_turned": bytes.fromhex(facts["phash_turned"])}
    if facts["pdq"] is not None:
        columns |= {"pdq": bytes.fromhex(facts["pdq"]), "pdq_quality": facts["pdq_quality"], "pdq_turned": bytes.fromhex(facts["pdq_turned"])}
    return columns | ({"thumbnail": np.frombuffer(bytes(payload), np.uint8)} if len(payload) else {})


def _looks(facts: Facts, payload: bytes) -> list[Look]:
    from stages.images.leaks import VIEW, Look  # the codecs of the decoders, which a worker that hashes nothing need not load

    hashes = facts["hashes"]
    views = np.frombuffer(payload, np.uint8).reshape(len(hashes), VIEW, VIEW)
    return [Look(bytes.fromhex(one), view) for one, view in zip(hashes, views, strict=True)]


def _index_columns(facts: Facts, payload: bytes) -> dict[str, Any]:
    return {name: bytes.fromhex(value) if isinstance(value, str) else value for name, value in facts.items()} | {"thumb": bytes(payload)}


def _array(facts: Facts, payload: bytes) -> np.ndarray:
    return np.frombuffer(payload, np.uint8).reshape(facts["shape"])
