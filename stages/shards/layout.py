"""Gives finished files their final names in `dataset/`, so that a kill at any moment loses and mixes up nothing.

Tasks make files in `jobs/<job>/` under names that hold the digest of their inputs; `dataset/` changes only in `publish`.
A shard of the dataset is recognised by the footer of its index. Shards that keep their bytes but not their number are
renamed: first out of the dataset, then in. Each of these two lists of renames is committed as a journal before its first
rename and done again after a kill: within a list no name is both left and taken, so that doing it twice is doing it once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from pipeline.errors import Fatal
from pipeline.files import commit_bytes, move, remove_files, sizes, sync_folder
from pipeline.storage import ObjectPath, Place
from schemas.dataset import MANIFEST
from stages.shards.files import EMBEDDINGS, INDEX, TAR, Footer, read_footers

_COPIES = 8  # server-side copies under way at a time
_OURS = re.compile(r"(shards/.+-\d{5,}(\.embeddings)?\.(tar|parquet)|rejected/part-\d{5,}\.parquet)")


@dataclass(frozen=True)
class Unit:
    """Files that get their final name together: a shard's tar, index and embeddings, or one rejected file.

    stem: path in the dataset without suffix; inputs: digest by which the unit is recognised; suffixes: the index last.
    """

    stem: str
    inputs: str
    suffixes: tuple[str, ...]

    @property
    def made(self) -> str:
        """Name while it is not in the dataset, without suffix."""
        folder, _, name = self.stem.partition("/")
        return self.inputs if folder == "shards" else f"{name}.{self.inputs}"


def shard_suffixes(footer: Footer) -> tuple[str, ...]:
    return (TAR, EMBEDDINGS, INDEX) if footer.embeddings_sha256 else (TAR, INDEX)


class Layout:
    """The dataset folder and the folder where files are made."""

    def __init__(self, dataset: Place, made: Place, guard: Callable[[], None]):
        self.dataset = dataset
        self.made = made
        self.guard = guard
        self.journal = made / "renames.json"

    def recover(self) -> None:
        """Go on with the renames of a run that was killed among them."""
        try:
            renames = json.loads(self.journal.read_text())
        except FileNotFoundError:
            return
        self._rename(renames)
        self.journal.unlink()

    def published(self) -> dict[str, Footer]:
        """Stem -> footer of every whole unit of the dataset (a shard whose tar is missing or cut is none)."""
        there = sizes(self.dataset, "shards/*") | sizes(self.dataset, "rejected/*")
        stems = {self.dataset / name: name.removesuffix(INDEX) for name in there if name.endswith(INDEX) and not name.endswith(EMBEDDINGS)}
        footers = read_footers(list(stems))
        return {stems[path]: footer for path, footer in footers.items() if is_whole(stems[path], footer, there)}

    def publish(self, units: list[Unit], files: dict[str, bytes], manifest: bytes) -> int:
        """Bring the dataset to `units`, small `files` and `manifest`, written last. Returns how many units moved."""
        current = {stem: footer.inputs for stem, footer in self.published().items()}
        arriving = [unit for unit in units if current.get(unit.stem) != unit.inputs]
        unchanged = not arriving and all(_holds(self.dataset / name, data) for name, data in {**files, MANIFEST: manifest}.items())
        listed = {unit.stem + suffix for unit in units for suffix in unit.suffixes}
        if not unchanged:
            self.guard()
            self.dataset.mkdir(parents=True, exist_ok=True)
            (self.dataset / MANIFEST).unlink(missing_ok=True)
            sync_folder(self.dataset)
            self._move(current, arriving)
            for name, data in files.items():
                commit_bytes(self.dataset / name, data, self.guard)
        self._sweep(listed)
        if not unchanged:
            self._check(units)
            commit_bytes(self.dataset / MANIFEST, manifest, self.guard)
        return len(arriving)

    def _check(self, units: list[Unit]) -> None:
        """The manifest is written over what is there, not over what should be."""
        found = {stem: footer.inputs for stem, footer in self.published().items()}
        for unit in units:
            if found.get(unit.stem) != unit.inputs:
                raise Fatal(f"{self.dataset / unit.stem}: its files vanished while the dataset was put together; run the same command again")

    def _move(self, current: dict[str, str], arriving: list[Unit]) -> None:
        wanted = {unit.inputs: unit for unit in arriving if unit.stem.startswith("shards/")}
        leaving = [(stem, wanted[inputs]) for stem, inputs in current.items() if inputs in wanted]
        out = [(f"{stem}{suffix}", f"{unit.made}{suffix}") for stem, unit in leaving for suffix in unit.suffixes]
        into = [(f"{unit.made}{suffix}", f"{unit.stem}{suffix}") for unit in arriving for suffix in unit.suffixes]
        # Written without machine paths: the run directory may be moved between a kill and the next start.
        for renames in ([["dataset", a, "made", b] for a, b in out], [["made", a, "dataset", b] for a, b in into]):
            commit_bytes(self.journal, json.dumps(renames).encode(), self.guard)
            self._rename(renames)
        self.journal.unlink(missing_ok=True)

    def _rename(self, renames: Sequence[list[str]]) -> None:
        """In object storage a rename is a copy by the server, and several are under way at a time."""
        roots = {"dataset": self.dataset, "made": self.made}

        def rename(entry: list[str]) -> Place:
            from_root, source, to_root, target = entry
            path = roots[to_root] / target
            with suppress(FileNotFoundError):  # done before the kill
                move(roots[from_root] / source, path)
            return path.parent

        with ThreadPoolExecutor(_COPIES if isinstance(self.made, ObjectPath) else 1) as pool:
            folders = {self.made, *pool.map(rename, renames)}
        for folder in folders:
            sync_folder(folder)

    def _sweep(self, listed: set[str]) -> None:
        """Remove files under names that pairmill gives which the dataset no longer has; others' files are left alone."""
        there = sizes(self.dataset, "shards/*") | sizes(self.dataset, "rejected/*")
        remove_files([self.dataset / name for name in there if name not in listed and _OURS.fullmatch(name)])

    def sweep_made(self, keep: set[str]) -> None:
        """Remove what was made for datasets that were never published."""
        remove_files([self.made / name for name in sizes(self.made, "*") if name not in keep])


def is_whole(stem: str, footer: Footer, there: dict[str, int]) -> bool:
    """Whether the files that the index `stem` was made with are among those that are there (name -> bytes), the tar in its full length."""
    if footer.kind != "index":
        return True
    return there.get(stem + TAR) == footer.tar_bytes and (not footer.embeddings_sha256 or stem + EMBEDDINGS in there)


def _holds(path: Place, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except FileNotFoundError:
        return False
