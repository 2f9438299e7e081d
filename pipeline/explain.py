"""One row's whole life: its source columns, every stage's values and verdict, and where it is in the dataset."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from pipeline.chain import Node, Ref
from pipeline.console import plain, print_fact
from pipeline.errors import RecipeError
from pipeline.files import parquet_source, read_metadata
from pipeline.run import open_run
from pipeline.run_view import RunView
from pipeline.safe_text import one_line
from pipeline.stage import Vector
from pipeline.storage import Place
from pipeline.store import BOOKKEEPING, RESOLVED, VALUES, VERDICTS
from pipeline.view import PartView
from schemas.outcome import Outcome, Status

SHORTEST_PREFIX = 6
MOST_SHOWN = 20
LONGEST_TEXT = 400
LONGEST_NAME = 40


def explain(out: str | Path, wanted: str) -> list[dict[str, Any]]:
    """Every row that `wanted` names: a sample_id in hex (or its first 6 or more digits), a URL, or the path of a local image.

    Several rows may have one id (the same line twice), one URL or one path. Raises RecipeError where there is none, or where a
    prefix fits several ids.
    """
    view = open_run(out)
    prefix = wanted.lower()
    is_hex = len(prefix) <= 32 and all(letter in "0123456789abcdef" for letter in prefix)
    if is_hex and len(prefix) < SHORTEST_PREFIX:
        raise RecipeError(f"{wanted}: give at least {SHORTEST_PREFIX} digits of a sample_id, or a whole URL or path")
    places = list(_with_id(view, prefix)) if is_hex else []
    ids = sorted({identifier for _, _, identifier in places})
    if len(ids) > 1:
        raise RecipeError(f"{wanted}: {len(ids)} samples begin so: {', '.join(ids[:5])}{' ...' if len(ids) > 5 else ''}; give more digits")
    if not places:
        places = list(_with_value(view, "url", wanted))
    if not places and "path" in view.chain.nodes[0].writes:
        places = list(_with_value(view, "path", wanted))
    if not places:
        raise RecipeError(f"{wanted}: no row of {out} has this sample_id, URL or path ({sum(view.parts):,} rows in {len(view.parts)} parts searched)")
    return [_life(view, part, row) for part, row, _ in places]


def _source(view: RunView, part: int, column: str) -> pa.Array:
    table = view.store.read(VALUES, "source", part, [column])
    if table is None:
        raise RecipeError(f"{view.store.path(VALUES, 'source', part)}: is missing; run the same command again to cut the input anew")
    return table[column].combine_chunks()


def _with_id(view: RunView, prefix: str) -> Iterator[tuple[int, int, str]]:
    """(part, row, id) of the rows whose sample_id begins with these hex digits."""
    whole = np.frombuffer(bytes.fromhex(prefix[: len(prefix) // 2 * 2]), np.uint8)
    for part in range(len(view.parts)):
        column = _source(view, part, "sample_id")
        raw = np.frombuffer(column.buffers()[1], np.uint8)[column.offset * 16 : (column.offset + len(column)) * 16].reshape(-1, 16)
        fits = (raw[:, : len(whole)] == whole).all(1)
        if len(prefix) % 2:
            fits &= raw[:, len(whole)] >> 4 == int(prefix[-1], 16)
        for row in np.flatnonzero(fits).tolist():
            yield part, row, raw[row].tobytes().hex()


def _with_value(view: RunView, name: str, value: str) -> Iterator[tuple[int, int, str]]:
    """(part, row, id) of the rows that have this value in a column of the source."""
    for part in range(len(view.parts)):
        column = _source(view, part, name)
        for row in np.flatnonzero(pc.fill_null(pc.equal(column, value), False).to_numpy(zero_copy_only=False)).tolist():
            yield part, row, _source(view, part, "sample_id")[row].as_py().hex()


def _life(run: RunView, part: int, row: int) -> dict[str, Any]:
    view = run.view(part)
    source = {name: _shown(view.column(Ref(0, name))[row]) for name in run.chain.nodes[0].writes}
    stages = [_at_stage(run, view, node, row) for node in run.chain.nodes]
    identifier = source["sample_id"]
    left = next((stage for stage in stages if stage["verdict"] in ("dropped", "failed")), None)
    unjudged = next((stage["stage"] for stage in stages if stage["verdict"] is None), None)
    became = "kept" if unjudged is None else f"not judged yet at {unjudged}"
    if left is not None:
        became = f"{left['verdict']} at {left['stage']}: {left['reason']}" + (f" ({left['detail']})" if left["detail"] else "")
    return {
        "sample_id": identifier,
        "part": part,
        "row": row,
        "became": became,
        "source": source,
        "stages": stages[1:] if left is not stages[0] else stages,
        "dataset": _in_dataset(run, str(identifier)),
        "same_url": _same_url(run, source.get("url"), part, row),
    }


def _at_stage(run: RunView, view: PartView, node: Node, row: int) -> dict[str, Any]:
    found: dict[str, Any] = {"stage": node.name, "verdict": None, "reason": None, "detail": None, "outcome": None}
    if view.record(VERDICTS, node) is not None:
        verdict = view.verdict(node.index)
        found["verdict"] = Status(int(verdict.status[row])).name.lower()
        found["reason"], found["detail"] = verdict.reason[row].as_py(), verdict.detail[row].as_py()
    if node.has_compute and node.index:
        record = view.record(VALUES, node)
        outcome = Outcome(int(view.outcome(node)[row])) if record is not None else Outcome.ABSENT
        found["outcome"] = outcome.name.lower()
        if outcome == Outcome.VALUE:
            found["values"] = {name: _cell(run, view, Ref(node.index, name), row) for name in node.writes}
            assert record is not None
            if record.fingerprint != node.compute_fingerprint:
                found["note"] = "measured under other settings; the next run measures it anew if the row reaches this stage"
            elif found["verdict"] == "skipped":
                found["note"] = "measured by an earlier, looser run; no later stage sees it now"
        elif outcome == Outcome.FAILED:
            found["failure"] = _cell(run, view, Ref(node.index, "failure"), row)
            found["failure_detail"] = _cell(run, view, Ref(node.index, "failure_detail"), row)
    if node.has_resolve and view.record(RESOLVED, node) is not None:
        found["resolved"] = {name: _cell(run, view, Ref(node.index, name, True), row) for name in node.resolves}
    return found


def _cell(run: RunView, view: PartView, ref: Ref, row: int) -> Any:
    kind = run.chain.type_of(ref) if ref.column not in BOOKKEEPING else None
    value = view.column(ref)[row]
    if isinstance(kind, Vector) and value.is_valid:
        return f"{kind.dtype}[{len(value.as_py()) // np.dtype(kind.dtype).itemsize}]"
    return _shown(value)


def _shown(value: pa.Scalar) -> Any:
    """A stored value as plain JSON: bytes as hex."""
    return _plain(value.as_py())


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _in_dataset(run: RunView, key: str) -> list[dict[str, Any]]:
    """Where the dataset's indexes have a sample (of equal rows: all of them): shard (tar), offset and size."""
    found = []
    paths: list[Place] = sorted(run.dataset.glob("shards/*.parquet"))  # type: ignore[type-var]
    for path in paths:
        names = read_metadata(path).schema.to_arrow_schema().names
        if {"key", "offset"} <= set(names):  # the embeddings beside an index have no place
            columns = [name for name in ("key", "tar", "offset", "size") if name in names]
            lines = pq.read_table(parquet_source(path), columns=columns, filters=pc.starts_with(pc.field("key"), key)).to_pylist()
            found += [{"file": f"dataset/shards/{path.name}", "tar": path.with_suffix(".tar").name, **line} for line in lines]
    return found


def _same_url(run: RunView, url: Any, part: int, row: int) -> list[dict[str, Any]]:
    """Other rows with this URL, the first MOST_SHOWN in the order of the input."""
    found: list[dict[str, Any]] = []
    if not isinstance(url, str):
        return found
    for other_part, other_row, identifier in _with_value(run, "url", url):
        if (other_part, other_row) != (part, row):
            found.append({"sample_id": identifier, "part": other_part, "row": other_row})
        if len(found) == MOST_SHOWN:
            break
    return found


def print_life(life: dict[str, Any], console: Console) -> None:
    """The answer of `pairmill explain` for one row."""
    console.print(f"sample {life['sample_id']}  (part {life['part']}, row {life['row']})", style="bold")
    console.print(plain(f"became: {one_line(life['became'], LONGEST_TEXT)}"))
    for place in life["dataset"]:
        told = ", ".join(f"{key} {place[key]}" for key in ("tar", "offset", "size") if key in place)
        print_fact(console, "in the dataset:", f"{told} (index {place['file']})")
    _print_values("source", life["source"], console)
    for stage in life["stages"]:
        _print_stage(stage, console)
    if life["same_url"]:
        console.print(f"\nother rows with this URL ({len(life['same_url'])}{' or more' if len(life['same_url']) == MOST_SHOWN else ''})", style="bold")
        for other in life["same_url"]:
            console.print(f"  {other['sample_id']}  (part {other['part']}, row {other['row']})")


def _print_stage(stage: dict[str, Any], console: Console) -> None:
    verdict = stage["verdict"] or "not judged yet"
    reason = f": {one_line(stage['reason'], LONGEST_NAME)}" if stage["reason"] else ""
    detail = f" ({one_line(stage['detail'], LONGEST_TEXT)})" if stage["detail"] else ""
    _print_values(f"{stage['stage']}: {verdict}{reason}{detail}", stage.get("values", {}), console)
    if stage.get("failure"):
        console.print(plain(f"  failed with {stage['failure']}: {one_line(stage['failure_detail'], LONGEST_TEXT)}"))
    elif stage["outcome"] == "absent" and stage["verdict"] != "skipped":
        console.print("  no value")
    for name, value in stage.get("resolved", {}).items():
        _print_value(name, value, console, "  (resolved)")
    if "note" in stage:
        console.print(f"  note: {stage['note']}")


def _print_values(title: str, values: dict[str, Any], console: Console) -> None:
    console.print(plain(f"\n{title}", style="bold"))
    for name, value in values.items():
        _print_value(name, value, console)


def _print_value(name: str, value: Any, console: Console, mark: str = "") -> None:
    """One column of a stage; of a list of structs one line each, empty fields left out."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        console.print(f"  {one_line(name, LONGEST_NAME)} ={mark}")
        for place, entry in enumerate(value, 1):
            filled = {key: inner for key, inner in entry.items() if inner not in (None, "")}
            print_fact(console, f"{place}.", ", ".join(f"{key} {_text(inner)}" for key, inner in filled.items()), 4)
    else:
        print_fact(console, f"{one_line(name, LONGEST_NAME)} =", _text(value) + mark, 2)


def _text(value: Any) -> str:
    """A value as shown: floats with 6 digits, which is what a float32 holds."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and not any(isinstance(entry, dict | list) for entry in value):
        return f"[{', '.join(map(_text, value))}]"
    text = value if isinstance(value, str) else "null" if value is None else json.dumps(value, ensure_ascii=False)
    return one_line(text) if len(text) <= LONGEST_TEXT else f"{one_line(text[:LONGEST_TEXT])} ... ({len(text):,} characters; --json shows all)"
