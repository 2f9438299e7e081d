"""Local copies of what lies in object storage, for jobs that need files on a disk: a dataset's shards, exported weights."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.errors import Fatal
from pipeline.files import Guard, commit_bytes, commit_file, remove_files, temporary_name, upload_file, writing
from pipeline.storage import ObjectPath, Place
from schemas.dataset import MANIFEST, Manifest

_PIECE = 8 << 20
_AT_ONCE = 4


def local_root(place: Place) -> Path:
    """`place` itself where it is on a disk, else the folder in the user's cache that stands for it."""
    if not isinstance(place, ObjectPath):
        return place
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "pairmill" / hashlib.sha256(str(place).encode()).hexdigest()[:20]


def local_dataset(dataset: Place) -> Path:
    """The dataset as a local folder. In object storage: a copy of its shards and indexes, each checked against the manifest and kept.

    Raises Fatal where a file is not what the manifest says, and where the disk is full.
    """
    if not isinstance(dataset, ObjectPath):
        return dataset
    folder = local_root(dataset)
    content = (dataset / MANIFEST).read_bytes()
    manifest, old = Manifest.parse(content, str(dataset / MANIFEST)), _old_digests(folder)
    listed = manifest.listed()
    wanted = [name for shard in manifest.shards() for name in (shard.tar, shard.index)]
    missing = [name for name in wanted if old.get(name) != listed[name] or not (folder / name).is_file()]
    (folder / MANIFEST).unlink(missing_ok=True)  # written last: a copy without one is not whole
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda name: _fetch(dataset / name, folder / name, listed[name]), missing))
    remove_files([path for path in folder.glob("shards/*") if path.relative_to(folder).as_posix() not in wanted])
    commit_bytes(folder / MANIFEST, content)
    return folder


def _old_digests(folder: Path) -> dict[str, str]:
    try:
        return Manifest.parse((folder / MANIFEST).read_bytes(), str(folder / MANIFEST)).listed()
    except FileNotFoundError:
        return {}


def local_folder(source: Place) -> Path:
    """All files under a folder, fetched anew where it is in object storage."""
    if not isinstance(source, ObjectPath):
        return source
    folder = local_root(source)
    for path in source.rglob("*"):
        _fetch(path, folder / str(path.relative_to(source)), None)
    return folder


def _fetch(source: ObjectPath, target: Path, digest: str | None) -> None:
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    temporary, sha = temporary_name(target), hashlib.sha256()
    try:
        with writing(target), source.open("rb") as incoming, open(temporary, "wb") as file:
            while piece := incoming.read(_PIECE):
                sha.update(piece)
                file.write(piece)
        if digest is not None and sha.hexdigest() != digest:
            raise Fatal(f"{source}: its SHA-256 is {sha.hexdigest()}, the manifest says {digest}: the file was changed; check it with `pairmill verify`")
        commit_file(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def upload_folder(folder: Path, target: ObjectPath, names: list[str], guard: Guard) -> None:
    """Replace what lies under `target` by files of `folder`: single files, and folders with all that is in them."""
    files = [path for name in names for path in ([folder / name] if (folder / name).is_file() else sorted((folder / name).rglob("*"))) if path.is_file()]
    remove_files(list(target.rglob("*")))
    for path in files:
        upload_file(path, target / path.relative_to(folder).as_posix(), guard)
