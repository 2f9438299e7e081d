"""Folders, local or remote, walked one at a time in the order of the paths' bytes; links that lead out are told, not followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec

from pipeline.errors import RecipeError
from schemas.outcome import FailureCode
from stages.images.local import failure_of_file, is_local


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a folder, or a folder that was refused. path: relative to the root. code, detail: why it is not read."""

    path: str
    size: int = 0
    code: str = ""
    detail: str = ""
    is_folder: bool = False

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


class Folder:
    """A root folder. Hidden files and folders are left out."""

    def __init__(self, root: str, recursive: bool):
        self.root = root.rstrip("/") or "/"
        self.recursive = recursive
        self.real_root = os.path.realpath(root) if is_local(root) else ""

    def check(self, option: str) -> None:
        """Raises RecipeError where there is no such folder."""
        try:
            there = fsspec.core.url_to_fs(self.root)
            found = there[0].isdir(there[1])
        except (OSError, ValueError, ImportError) as error:
            raise RecipeError(f"{option}: {self.root}: {error}") from error
        if not found:
            raise RecipeError(f"{option}: no folder {self.root!r}; give the folder that holds the images, local or remote (s3://, gs://)")

    def full(self, path: str) -> str:
        return f"{self.root.rstrip('/')}/{path}"

    def walk(self, inside: str = "") -> Iterator[tuple[list[Entry], dict[str, Entry]]]:
        """Files of one folder after the other, so that all paths together come in the order of their bytes.

        A list holds the files of one folder up to the next folder inside it; with it comes the whole folder by name.
        """
        try:
            files, folders = self._local(inside) if is_local(self.root) else self._remote(inside)
        except OSError as error:
            failure = failure_of_file(error, self.full(inside))
            yield [Entry(inside, code=FailureCode.UNREADABLE, detail=failure.detail, is_folder=True)], {}
            return
        by_name = {entry.name: entry for entry in files}
        ordered = sorted([*((_key(entry.path), entry) for entry in files), *((_key(f"{path}/"), path) for path in folders)], key=lambda pair: pair[0])
        run: list[Entry] = []
        for _, found in ordered:
            if isinstance(found, Entry):
                run.append(found)
                continue
            if run:
                yield run, by_name
            run = []
            if self.recursive:
                yield from self.walk(found)
        if run:
            yield run, by_name

    def _local(self, inside: str) -> tuple[list[Entry], list[str]]:
        files, folders = [], []
        with os.scandir(self.full(inside) if inside else self.root) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = f"{inside}/{entry.name}" if inside else entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                else:
                    files.append(self._local_file(entry, path))
        return files, folders

    def _local_file(self, entry: os.DirEntry[str], path: str) -> Entry:
        if not path.isascii() and (shown := os.fsencode(path).decode("utf-8", "replace")) != path:
            return Entry(shown, code=FailureCode.UNREADABLE, detail="its name is not UTF-8: rename it")
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if not target.startswith(self.real_root.rstrip("/") + "/"):
                detail = f"a link that leads out of the folder, to {target}"
                return Entry(path, code=FailureCode.UNSAFE_PATH, detail=detail, is_folder=os.path.isdir(target))
            if os.path.isdir(target):
                return Entry(path, code=FailureCode.UNSAFE_PATH, detail=f"a link to a folder, to {target}: such links are not followed", is_folder=True)
            if not os.path.exists(target):
                return Entry(path, code=FailureCode.MISSING_IMAGE, detail=f"a link to {target}, which is not there")
        if not entry.is_file():
            return Entry(path, code=FailureCode.UNREADABLE, detail="is not a file")
        return Entry(path, entry.stat().st_size)

    def _remote(self, inside: str) -> tuple[list[Entry], list[str]]:
        filesystem, root = fsspec.core.url_to_fs(self.full(inside) if inside else self.root)
        files, folders = [], []
        listed: list[dict[str, Any]] = filesystem.ls(root, detail=True)
        for found in listed:
            name = found["name"].rstrip("/").rpartition("/")[2]
            if not name or name.startswith(".") or found["name"].rstrip("/") == root.rstrip("/"):
                continue
            path = f"{inside}/{name}" if inside else name
            if found["type"] == "directory":
                folders.append(path)
            else:
                files.append(Entry(path, int(found.get("size") or 0)))
        return files, folders


def _key(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")
