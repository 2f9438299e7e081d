"""croissant.json: Croissant 1.1 metadata of a dataset, and a check of it that is stricter than the reference validator's.

Specification: http://mlcommons.org/croissant/1.1. The tables (Parquet) come first: a reader unpacks an archive whole before it gives
the first image, so that the record set `images` stands over the first tar alone; all other tars are listed with their digests.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from schemas.dataset import IMAGE_EXTENSIONS, MANIFEST, REJECTED_COLUMNS, Manifest, Shard
from stages.shards.about import About

CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
REQUIRED = ("@context", "@type", "conformsTo", "name", "description", "license", "url", "creator", "datePublished")
_PARQUET, _TAR = "application/x-parquet", "application/x-tar"
_PLAIN_NAMES = ("citeAs", "column", "equivalentProperty", "extract", "field", "fileProperty", "fileObject", "fileSet", "format", "includes",
    "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate",
    "separator", "source", "subField", "transform", "arrayShape", "containedIn", "isArray")  # fmt: skip
_SCORES = {pa.float16(): "cr:Float16", pa.float32(): "cr:Float32", pa.float64(): "cr:Float64"}


def context() -> dict[str, Any]:
    """The JSON-LD context that the specification gives."""
    return {
        "@language": "en",
        "@vocab": "https://schema.org/",
        **{name: f"cr:{name}" for name in sorted(_PLAIN_NAMES)},
        "conformsTo": "dct:conformsTo",
        "cr": "http://mlcommons.org/croissant/",
        "data": {"@id": "cr:data", "@type": "@json"},
        "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
        "dct": "http://purl.org/dc/terms/",
        "description": {"@container": "@language"},
        "examples": {"@id": "cr:examples", "@type": "@json"},
        "name": {"@container": "@language"},
        "rai": "http://mlcommons.org/croissant/RAI/",
        "sc": "https://schema.org/",
    }


def croissant(about: About, manifest: Manifest, index: pa.Schema) -> bytes:
    """croissant.json, a function of its arguments. `index`: schema of the shards' indexes."""
    shards = manifest.shards()
    data = {
        "@context": context(),
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": about.name,
        "description": about.description,
        "license": about.license,
        "url": about.url,
        "creator": {"@type": "sc:Organization", "name": about.creator},
        "datePublished": about.date_published,
        "citeAs": about.cite_as,
        "version": "1.0.0",
        "rai:dataCollection": f"Images fetched from the addresses in the input; {manifest.counts['input']} rows were read.",
        "rai:dataPreprocessingProtocol": _left_out(manifest),
        "distribution": _distribution(shards, manifest),
        "recordSet": _record_sets(shards, index),
    }
    return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()


def _left_out(manifest: Manifest) -> list[str]:
    told = [
        f"stage {stage}: {n} rows {status} for {reason}"
        for stage, by_status in manifest.counts["stages"].items()
        for status, reasons in by_status.items()
        for reason, n in reasons.items()
    ]
    return told or ["no row was left out"]


def _file(name: str, encoding: str, sha256: str, **more: str) -> dict[str, Any]:
    return {"@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": name, "encodingFormat": encoding, "sha256": sha256, **more}


def _distribution(shards: list[Shard], manifest: Manifest) -> list[dict[str, Any]]:
    tables = [_file(shard.index, _PARQUET, shard.index_sha256) for shard in shards]
    rejected = [_file(entry.path, _PARQUET, entry.sha256) for entry in manifest.rejected]
    tars = [_file(shard.tar, _TAR, shard.tar_sha256, contentSize=f"{shard.tar_bytes} B") for shard in shards]
    sets: list[dict[str, Any]] = []
    if shards:
        sets.append(_file_set("index-files", "one table per tar: a row per pair", ["shards/*[0-9].parquet"], _PARQUET))
    if manifest.rejected:
        sets.append(_file_set("rejected-files", "every row of the input that is in no shard, with the reason", ["rejected/*.parquet"], _PARQUET))
    if shards:
        images = _file_set("first-tar-images", f"images of {shards[0].tar}", [f"*.{ext}" for ext in IMAGE_EXTENSIONS], "image/jpeg")
        images["encodingFormat"] = ["image/jpeg", "image/png", "image/webp"]
        sets.append({**images, "containedIn": {"@id": shards[0].tar}})
    return [*sets, *tables, *rejected, *tars]


def _file_set(name: str, description: str, includes: list[str], encoding: str) -> dict[str, Any]:
    return {"@type": "cr:FileSet", "@id": name, "name": name, "description": description, "encodingFormat": encoding, "includes": includes}


def _record_sets(shards: list[Shard], index: pa.Schema) -> list[dict[str, Any]]:
    rejected = _table("rejected", "rejected-files", "Rows that are in no shard.", [(name, kind) for name, kind in REJECTED_COLUMNS.items()])
    if not shards:
        return [rejected]
    columns = [(field.name, field.type) for field in index if _data_type(field.name, field.type)]
    pairs = _table("pairs", "index-files", "One record per image-text pair.", columns)
    pairs["key"] = {"@id": "pairs/key"}
    images = {
        "@type": "cr:RecordSet", "@id": "images", "name": "images", "description": f"The images of {shards[0].tar}; all other tars are built alike.",
        "key": {"@id": "images/key"},
        "field": [
            {
                "@type": "cr:Field", "@id": "images/key", "name": "images/key", "dataType": "sc:Text",
                "source": {"fileSet": {"@id": "first-tar-images"}, "extract": {"fileProperty": "filename"}, "transform": {"regex": r"([^/.]+)\.[a-z]+$"}},
            },
            {
                "@type": "cr:Field", "@id": "images/image", "name": "images/image", "dataType": "sc:ImageObject",
                "source": {"fileSet": {"@id": "first-tar-images"}, "extract": {"fileProperty": "content"}},
            },
        ],
    }  # fmt: skip
    return [pairs, rejected, images]


def _table(name: str, file_set: str, description: str, columns: list[tuple[str, pa.DataType]]) -> dict[str, Any]:
    fields = [
        {
            "@type": "cr:Field", "@id": f"{name}/{column}", "name": f"{name}/{column}", "dataType": _data_type(column, kind),
            "source": {"fileSet": {"@id": file_set}, "extract": {"column": column}},
        }
        for column, kind in columns
    ]  # fmt: skip
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "description": description, "field": fields}


def _data_type(column: str, kind: pa.DataType) -> str:
    """Croissant's type of a column; '' for those it has none for (nested ones and bytes), which stand in no record set."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "sc:URL" if column == "url" else "sc:Text"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    return _SCORES.get(kind, "")


def check_croissant(data: Any, manifest: Manifest, index: Iterable[str]) -> list[str]:
    """What is wrong with croissant.json, as texts. `index`: columns of the shards' indexes.

    The reference validator takes missing creator, url and description for fine and only warns of a missing licence and date; the
    specification requires them.
    """
    if not isinstance(data, dict):
        return ["it is not a JSON object"]
    problems = [f"{name} is required and missing or empty" for name in REQUIRED if not data.get(name)]
    if data.get("conformsTo") != CONFORMS_TO:
        problems.append(f"conformsTo is {data.get('conformsTo')!r}, not {CONFORMS_TO}")
    if data.get("@type") != "sc:Dataset" or not isinstance(data.get("@context"), dict) or data["@context"].get("cr") != "http://mlcommons.org/croissant/":
        problems.append("it is not a sc:Dataset in the namespace http://mlcommons.org/croissant/")
    if not re.match(r"[a-z][a-z0-9+.-]*:", str(data.get("url", ""))):
        problems.append(f"url {data.get('url')!r} is no absolute address")
    try:
        datetime.date.fromisoformat(str(data.get("datePublished")))
    except ValueError:
        problems.append(f"datePublished {data.get('datePublished')!r} is no date YYYY-MM-DD")
    return problems + _check_files(data, manifest) + _check_fields(data, set(index))


def _check_files(data: dict[str, Any], manifest: Manifest) -> list[str]:
    listed = {name: sha256 for name, sha256 in manifest.listed().items() if name.endswith((".tar", ".parquet")) and ".embeddings." not in name}
    found = {entry.get("contentUrl"): entry.get("sha256") for entry in data.get("distribution", []) if entry.get("@type") == "cr:FileObject"}
    wrong = sorted(str(name) for name in listed.keys() | found.keys() if listed.get(name) != found.get(name))
    return [f"distribution: {len(wrong)} files are not as {MANIFEST} lists them, the first is {wrong[0]}"] if wrong else []


def _check_fields(data: dict[str, Any], index: set[str]) -> list[str]:
    ids = {entry.get("@id") for entry in data.get("distribution", [])}
    problems = []
    for records in data.get("recordSet", []):
        for entry in records.get("field", []):
            source = entry.get("source", {})
            if source.get("fileSet", {}).get("@id") not in ids or not entry.get("dataType"):
                problems.append(f"field {entry.get('@id')} has no source in the distribution, or no dataType")
            column = source.get("extract", {}).get("column")
            if records.get("@id") == "pairs" and column not in index:
                problems.append(f"field {entry.get('@id')}: the indexes have no column {column!r}")
    return problems
