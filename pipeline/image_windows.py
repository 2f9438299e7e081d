"""Stored images read from object storage in few requests: neighbouring images of a tar are fetched together, a window at a time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline import object_store
from pipeline.blobs import ImageRef
from pipeline.errors import Fatal
from pipeline.storage import ObjectPath

WINDOW_BYTES = 32 << 20  # images fetched at a time; the next window is fetched while this one is used
REQUEST_BYTES = 16 << 20
GAP_BYTES = 1 << 20  # what lies between two images may cost less to read than a second request
NEIGHBOUR_BYTES = 1024  # padding and header between two members that follow each other in a tar
FREE_BYTES = 64 << 10  # as much may be read beside the images of a request, whatever they measure

BlobPlace = tuple[str, int, int]  # tar, offset, size


def spans(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Few (start, stop) that cover all (offset, size): neighbours joined, without reading more than twice what is wanted."""
    found: list[tuple[int, int]] = []
    wasted = wanted = 0
    for offset, size in sorted(ranges):
        if found:
            start, stop = found[-1]
            gap = max(0, offset - stop - NEIGHBOUR_BYTES)
            reach = max(stop, offset + size)
            if gap <= GAP_BYTES and wasted + gap <= max(FREE_BYTES, wanted + size) and reach - start <= REQUEST_BYTES:
                found[-1] = (start, reach)
                wasted, wanted = wasted + gap, wanted + size
                continue
        found.append((offset, offset + size))
        wasted, wanted = 0, size
    return found


class _Window:
    """Images that are fetched together, and dropped when each has been read."""

    def __init__(self, folder: ObjectPath, places: list[BlobPlace]):
        self.folder = folder
        self.places = places
        self._unread = set(places)
        self._held: dict[str, list[tuple[int, memoryview]]] = {}
        self._fetching: Future[None] | None = None
        self._lock = threading.Lock()

    def start(self) -> Future[None]:
        """Begin to fetch, once."""
        with self._lock:
            if self._fetching is None:
                self._fetching = _fetchers().submit(self._fetch)
            return self._fetching

    def _fetch(self) -> None:
        tars: dict[str, list[tuple[int, int]]] = {}
        for tar, offset, size in dict.fromkeys(self.places):
            tars.setdefault(tar, []).append((offset, size))
        for tar, ranges in tars.items():
            path = self.folder / tar
            wanted = spans(ranges)
            try:
                pieces = object_store.get_ranges(path.bucket, path.key, wanted)
            except FileNotFoundError:
                raise _gone(path) from None
            self._held[tar] = [(start, piece) for (start, _), piece in zip(wanted, pieces, strict=True)]

    def read(self, place: BlobPlace) -> bytes:
        self.start().result()
        tar, offset, size = place
        with self._lock:
            data = next((bytes(piece[offset - start : offset - start + size]) for start, piece in self._held.get(tar, ()) if _holds(start, piece, place)), None)
            self._unread.discard(place)
            if not self._unread:
                self._held.clear()
        return self._alone(place) if data is None else data

    def _alone(self, place: BlobPlace) -> bytes:
        """An image asked for again after its window was dropped."""
        tar, offset, size = place
        path = self.folder / tar
        try:
            return bytes(object_store.get_range(path.bucket, path.key, offset, size))
        except FileNotFoundError:
            raise _gone(path) from None


def _holds(start: int, piece: memoryview, place: BlobPlace) -> bool:
    return start <= place[1] and place[1] + place[2] <= start + len(piece)


def _gone(path: ObjectPath) -> Fatal:
    return Fatal(f"{path}: this tar of stored images is gone; restore it, or run again in a new folder")


class WindowedImage(ImageRef):
    """A stored image in object storage."""

    __slots__ = ("_reads", "_window")

    def __init__(self, path: ObjectPath, offset: int, size: int, reads: ImageWindows, window: int):
        super().__init__(path, offset, size)
        self._reads = reads
        self._window = window

    def read(self) -> bytes:
        """The bytes as stored. Raises Fatal naming the tar when it is gone, or the store gives no answer: that is no fault of the row."""
        data = self._reads.read(self._window, (self.path.name, self.offset, self.size))
        if len(data) != self.size:
            raise Fatal(f"{self.path}: {len(data)} of {self.size} bytes at {self.offset}: the tar is not the one that was stored")
        return data


class ImageWindows:
    """Images in the order in which they will be read. Memory: two windows, whatever the part's size; safe for several threads."""

    def __init__(self, folder: ObjectPath, places: Sequence[BlobPlace]):
        self.folder = folder
        self.windows = [_Window(folder, list(group)) for group in _cut(places)]
        self._window_of = {place: number for number, window in enumerate(self.windows) for place in window.places}

    def image(self, place: BlobPlace) -> WindowedImage:
        """The image at a place that was announced."""
        tar, offset, size = place
        return WindowedImage(self.folder / tar, offset, size, self, self._window_of[place])

    def read(self, number: int, place: BlobPlace) -> bytes:
        if number + 1 < len(self.windows):
            self.windows[number].start()
            self.windows[number + 1].start()
        return self.windows[number].read(place)


def _cut(places: Sequence[BlobPlace]) -> Iterator[list[BlobPlace]]:
    group: list[BlobPlace] = []
    held = 0
    for place in places:
        if group and held + place[2] > WINDOW_BYTES:
            yield group
            group, held = [], 0
        group.append(place)
        held += place[2]
    if group:
        yield group


@functools.cache
def _fetchers() -> ThreadPoolExecutor:
    """Threads that wait for the store, kept for the process."""
    return ThreadPoolExecutor(4, thread_name_prefix="pairmill-fetch")
