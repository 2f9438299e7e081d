"""Input tables on s3:// as a file system of fsspec, for reading: the client, settings and errors are those of the run directory."""

from __future__ import annotations

from typing import Any

from fsspec import AbstractFileSystem

from pipeline import object_store
from pipeline.storage import ObjectPath


class S3Inputs(AbstractFileSystem):
    """What fsspec opens for s3://. Names are 'bucket/key', as fsspec has them."""

    protocol = ("s3", "s3a")
    cachable = False  # endpoint and credentials are those of the moment

    def _place(self, path: str) -> ObjectPath:
        bucket, _, key = self._strip_protocol(path).partition("/")
        return ObjectPath(bucket, key)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """One level: files with their sizes, and folders. Raises FileNotFoundError where there is neither."""
        place = self._place(path)
        folders, files = object_store.level(place.bucket, place.key)
        found = [{"name": f"{place.bucket}/{key}", "size": size, "type": "file"} for key, size in files]
        found += [{"name": f"{place.bucket}/{key}", "size": 0, "type": "directory"} for key in folders]
        if not found:
            found = [self.info(path)]
        return found if detail else [entry["name"] for entry in found]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        place = self._place(path)
        name = f"{place.bucket}/{place.key}"
        if place.key:
            try:
                return {"name": name, "size": place.stat().st_size, "type": "file"}
            except FileNotFoundError:
                if not place.is_dir():
                    raise
        return {"name": name, "size": 0, "type": "directory"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Bytes [start, end) by one request; without bounds the whole object. Negative bounds count from its end."""
        place = self._place(path)
        if start is None and end is None:
            return place.read_bytes()
        first, last = start or 0, end
        if last is None or first < 0 or last < 0:
            first, last, _ = slice(first, last).indices(place.stat().st_size)
        return bytes(object_store.get_range(place.bucket, place.key, first, last - first)) if last > first else b""

    def _open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        return self._place(path).open(mode)
