"""Re-checks a dataset folder: digests, keys, member order, places, counts, splits, decodability."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files import parquet_source
from pipeline.storage import ObjectPath, Place, place_of
from schemas.dataset import IMAGE_EXTENSIONS, INDEX_COLUMNS, MANIFEST, PLACE_COLUMNS, REJECTED_COLUMNS, SIZES, Manifest, ManifestError, Shard
from schemas.outcome import Failure
from stages.images.decoders import DecoderLimits, Decoders, shared_decoders
from stages.shards.files import file_sha256
from stages.shards.rows import json_floats, plain_value

_NO_LIMIT = 1 << 62  # pixels: the stage that stored the image has checked its own limit
_LIMITS = DecoderLimits(timeout_s=60, memory_mb=8192)  # the stage that stored an image may have had others than the default ones
_BATCH = 256


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the file (relative to the dataset), the sample's key where there is one, and what."""

    file: str
    key: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key + ': ' if self.key else ''}{self.what}"


def verify_dataset(folder: str | Place, decode: bool = True, threads: int = 2) -> list[Problem]:
    """Everything that is wrong with a dataset folder; an empty list when it is as its manifest says.

    decode: also decode every image whole. Memory is bounded by one index and `_BATCH` samples; keys and image digests
    are compared out of core.
    """
    folder = place_of(folder)
    try:
        manifest = Manifest.parse((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))
    except FileNotFoundError:
        return [Problem(MANIFEST, "", f"{folder / MANIFEST} does not exist: a dataset without a manifest is not complete; finish its run")]
    except ManifestError as error:
        return [Problem(MANIFEST, "", str(error))]
    listed = manifest.listed()
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if isinstance(path, ObjectPath) or path.is_file())  # type: ignore[arg-type]
    names = set(there)
    missing = [name for name in listed if name not in names]
    problems = [Problem(name, "", "listed in the manifest, but there is no such file") for name in missing]
    problems += [Problem(name, "", "not listed in the manifest: it does not belong to the dataset") for name in there if name not in {*listed, MANIFEST}]
    present = [name for name in listed if name not in missing]
    decoders = shared_decoders(_LIMITS) if decode else None
    with ThreadPoolExecutor(threads) as pool:
        for name, digest in zip(present, pool.map(lambda name: file_sha256(folder / name), present), strict=True):
            if digest != listed[name]:
                problems.append(Problem(name, "", f"its SHA-256 is {digest}, the manifest says {listed[name]}: the file was changed or damaged"))
        whole = [shard for shard in manifest.shards() if shard.tar not in missing and shard.index not in missing]
        readable = []
        for shard in whole:
            found = list(_check_shard(folder, shard, decoders))
            problems += found
            if not any(problem.file == shard.index and not problem.key for problem in found):
                readable.append(shard)
    problems += _across_shards(folder, manifest, readable)
    problems += _counts(folder, manifest, missing)
    return problems


def _check_shard(folder: Place, shard: Shard, decoders: Decoders | None) -> Iterator[Problem]:
    tar = folder / shard.tar
    if tar.stat().st_size != shard.tar_bytes:
        yield Problem(shard.tar, "", f"{tar.stat().st_size} bytes, the manifest says {shard.tar_bytes}")
    try:
        index = pq.read_table(parquet_source(folder / shard.index))
    except (OSError, pa.ArrowInvalid) as error:
        yield Problem(shard.index, "", f"cannot be read: {error}")
        return
    missing = [name for name in INDEX_COLUMNS if name not in index.column_names]
    if missing:
        yield Problem(shard.index, "", f"lacks the columns {', '.join(missing)}")
        return
    if index.num_rows != shard.samples:
        yield Problem(shard.index, "", f"{index.num_rows} rows, the manifest says {shard.samples} samples")
    yield from _check_samples(tar, shard, index, decoders)
    if shard.embeddings and (folder / shard.embeddings).is_file():
        yield from _check_embeddings(folder / shard.embeddings, shard, index)


def _check_samples(tar: Place, shard: Shard, index: pa.Table, decoders: Decoders | None) -> Iterator[Problem]:
    """The tar's members against the index, row by row: order, names, places, texts, records, images."""
    ready = pa.table({name: json_floats(index[name].combine_chunks()) for name in index.column_names})
    images: list[tuple[str, str, bytes]] = []
    try:
        with tar.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            members = iter(archive)
            for row in _rows(ready):
                yield from _check_sample(archive, members, shard, row, images)
                if decoders is not None and len(images) >= _BATCH:
                    yield from _undecodable(decoders, shard, images)
                if decoders is None:
                    images.clear()
            if decoders is not None:
                yield from _undecodable(decoders, shard, images)
            extra = [member.name for member in members]
            if extra:
                yield Problem(shard.tar, "", f"{len(extra)} members that the index does not have, the first is {extra[0]}")
    except (tarfile.TarError, OSError, StopIteration) as error:
        yield Problem(shard.tar, "", f"cannot be read as a tar: {error}")


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for start in range(0, table.num_rows, _BATCH):
        yield from table.slice(start, _BATCH).to_pylist()


def _check_sample(
    archive: tarfile.TarFile, members: Iterator[tarfile.TarInfo], shard: Shard, row: dict[str, Any], images: list[tuple[str, str, bytes]]
) -> Iterator[Problem]:
    key, ext = row["key"], row["ext"]
    contents = []
    if ext not in IMAGE_EXTENSIONS:
        yield Problem(shard.index, key, f"ext {ext!r} is none of {', '.join(IMAGE_EXTENSIONS)}")
    for name in (f"{key}.{ext}", f"{key}.txt", f"{key}.json"):
        member = next(members, None)
        if member is None or member.name != name:
            yield Problem(shard.tar, key, f"member {name} is due here, found {member.name if member else 'the end'}")
        if member is None:
            return
        file = archive.extractfile(member)
        contents.append((member, file.read() if file else b""))
    (image_member, image), (_, text), (_, record) = contents
    if image_member.name != f"{key}.{ext}":
        return
    if (image_member.offset_data, image_member.size) != (row["offset"], row["size"]):
        place = f"{image_member.size} bytes at {image_member.offset_data}"
        yield Problem(shard.index, key, f"the image has {place}, the index says {row['size']} bytes at {row['offset']}")
    images.append((key, ext, image))
    if text != row["caption"].encode():
        yield Problem(shard.tar, key, f"{key}.txt is not the caption of the index")
    yield from _check_record(shard, row, record)
    expected = row.get("image_sha256")
    if expected is not None and _sha256(image) != expected:
        yield Problem(shard.tar, key, "the image's SHA-256 is not that of the index (image_sha256)")


def _check_record(shard: Shard, row: dict[str, Any], record: bytes) -> Iterator[Problem]:
    try:
        found = json.loads(record)
    except ValueError as error:
        yield Problem(shard.tar, row["key"], f"{row['key']}.json is not JSON: {error}")
        return
    expected = json.loads(json.dumps({k: v for k, v in row.items() if k not in PLACE_COLUMNS}, default=plain_value))
    if not isinstance(found, dict) or found != expected:
        differing = sorted({*expected, *found} - {k for k in expected if k in found and found[k] == expected[k]}) if isinstance(found, dict) else []
        yield Problem(shard.tar, row["key"], f"{row['key']}.json differs from the index in: {', '.join(differing) or 'its form'}")


def _undecodable(decoders: Decoders, shard: Shard, images: list[tuple[str, str, bytes]]) -> Iterator[Problem]:
    asked = [(key, ext, decoders.check(data, _NO_LIMIT)) for key, ext, data in images]
    for key, ext, answer in asked:
        found = answer.result()
        if isinstance(found, Failure):
            yield Problem(shard.tar, key, f"the image cannot be decoded: {found.code}: {found.detail}")
        elif found not in (ext, {"jpg": "jpeg"}.get(found)):
            yield Problem(shard.tar, key, f"the image is a {found}, its name says {ext}")
    images.clear()


def _check_embeddings(path: Place, shard: Shard, index: pa.Table) -> Iterator[Problem]:
    try:
        keys = pq.read_table(parquet_source(path), columns=["key"])["key"]
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        yield Problem(shard.embeddings, "", f"cannot be read: {error}")
        return
    if keys.to_pylist() != index["key"].to_pylist():
        yield Problem(shard.embeddings, "", "its keys are not those of the index, in the same order")


def _across_shards(folder: Place, manifest: Manifest, readable: list[Shard]) -> Iterator[Problem]:
    """Keys are unique, equal images stand in one split, split counts and sizes.json add up."""
    with duckdb.connect(config={"threads": 2}) as con:
        con.execute("CREATE TABLE samples (tar VARCHAR, split VARCHAR, key VARCHAR, image BLOB)")
        for split, part in manifest.splits.items():
            if part.samples != sum(shard.samples for shard in part.shards):
                yield Problem(MANIFEST, "", f"split {split}: {part.samples} samples, its shards have {sum(shard.samples for shard in part.shards)}")
            for shard in part.shards:
                if shard in readable:
                    table = pq.read_table(parquet_source(folder / shard.index))
                    digests = table["image_sha256"].cast(pa.binary()) if "image_sha256" in table.column_names else pa.nulls(table.num_rows, pa.binary())
                    columns = {"tar": [shard.tar] * table.num_rows, "split": [split] * table.num_rows, "key": table["key"], "image": digests}
                    con.register("incoming", pa.table(columns))
                    con.execute("INSERT INTO samples SELECT * FROM incoming")
                    con.unregister("incoming")
        for key, tars in con.execute("SELECT key, list(tar ORDER BY tar) FROM samples GROUP BY key HAVING count(*) > 1 ORDER BY key").fetchall():
            yield Problem(tars[-1], key, f"the key stands {len(tars)} times: in {', '.join(tars)}")
        shared = con.execute(
            "SELECT min(key), list(DISTINCT split ORDER BY split), max(tar) FROM samples WHERE image IS NOT NULL "
            "GROUP BY image HAVING count(DISTINCT split) > 1 ORDER BY 1"
        )
        for key, splits, tar in shared.fetchall():
            yield Problem(tar, key, f"the same image stands in the splits {' and '.join(splits)}")
    sizes = {shard.tar.rpartition("/")[2]: shard.samples for shard in manifest.shards()}
    if (folder / SIZES).is_file() and _json(folder / SIZES) != sizes:
        yield Problem(SIZES, "", "its counts are not those of the manifest")


def _counts(folder: Place, manifest: Manifest, missing: list[str]) -> Iterator[Problem]:
    """Rejected rows by stage and reason against the manifest; rows of the input against both."""
    counts = manifest.counts
    if manifest.samples != counts["kept"]:
        yield Problem(MANIFEST, "", f"{manifest.samples} samples in the splits, counts.kept says {counts['kept']}")
    rows = sum(entry.rows for entry in manifest.rejected)
    if counts["input"] != counts["kept"] + rows:
        yield Problem(MANIFEST, "", f"{counts['kept']} rows kept and {rows} rejected are not the {counts['input']} of the input")
    found: Counter[tuple[str, str, str]] = Counter()
    for entry in manifest.rejected:
        if entry.path in missing:
            return
        try:
            table = pq.read_table(parquet_source(folder / entry.path), columns=list(REJECTED_COLUMNS))
        except (OSError, pa.ArrowInvalid) as error:
            yield Problem(entry.path, "", f"cannot be read: {error}")
            return
        if table.num_rows != entry.rows:
            yield Problem(entry.path, "", f"{table.num_rows} rows, the manifest says {entry.rows}")
        found.update(zip(*(table[name].to_pylist() for name in ("stage", "status", "reason")), strict=True))
    said = Counter(
        {(stage, status, reason): n for stage, told in counts["stages"].items() for status, reasons in told.items() for reason, n in reasons.items()}
    )
    for stage, status, reason in sorted({*found, *said}, key=str):
        have, says = found[stage, status, reason], said[stage, status, reason]
        if have != says:
            yield Problem(MANIFEST, "", f"{stage}: {have} rejected rows are {status} for {reason}, counts says {says}")


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _json(path: Place) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None
