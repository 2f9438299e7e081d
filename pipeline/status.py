"""How far a run is: parts and rows per stage, who works in the folder, what is left."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.console import duration, plain, plain_table
from pipeline.lock import read_owner
from pipeline.part import is_done
from pipeline.run import open_run
from pipeline.run_view import RunView
from pipeline.safe_text import one_line
from pipeline.store import RESOLVED, VALUES, VERDICTS
from pipeline.summary import account, print_account


def status_of(out: str | Path) -> dict[str, Any]:
    """State of a run directory as plain values, from footers alone. Raises RecipeError where there is no run."""
    view = open_run(out)
    parts = len(view.parts)
    records = view.records()
    counts = view.counts()
    stages = []
    for node in view.chain.nodes:
        c = counts[node.name]
        line: dict[str, Any] = {"stage": node.name, "parts": parts}
        line["judged"] = sum((VERDICTS, node.name, part) in records for part in range(parts))
        line["measured"] = sum((VALUES, node.name, part) in records for part in range(parts)) if node.has_compute else None
        line |= {"in": c["kept"] + c["dropped"] + c["failed"], "kept": c["kept"], "dropped": c["dropped"], "failed": c["failed"]}
        stages.append(line)
    current = _current(view)
    finished = all(current)
    found: dict[str, Any] = {
        "run": str(out),
        "recipe": view.chain.recipe.name,
        "rows": sum(view.parts),
        "parts": parts,
        "parts_finished": sum(current),
        "working": _owner(view),
        "stages": stages,
        "state": "finished" if finished else "unfinished",
        "dataset": str(view.dataset) if (view.dataset / "manifest.json").is_file() else None,
        "stopped": None if finished else _last_stop(view),
    }
    if all(line["judged"] == parts for line in stages):
        found["account"] = account(view)
    return found


def _current(view: RunView) -> list[bool]:
    """Per part: every stage is up to date with what is committed before it."""
    views = [view.view(part) for part in range(len(view.parts))]
    found = view.store.records([(RESOLVED, node.name, part.part) for part in views for node in view.chain.nodes]) | view.records()
    for part in views:
        for node in view.chain.nodes:
            for kind in (VALUES, VERDICTS, RESOLVED):
                part.know_record(kind, node, found.get((kind, node.name, part.part)))
    return [all(is_done(node, part) for node in view.chain.nodes[1:]) for part in views]


def _last_stop(view: RunView) -> dict[str, Any] | None:
    """The last time a failure budget stopped this run."""
    record = view.store.read_run()
    return record.stops[-1] if record is not None and record.stops else None


def _owner(view: RunView) -> dict[str, Any] | None:
    owner = read_owner(view.root / "lock")
    if owner is None or not owner.alive:
        return None
    return {"process": owner.pid, "host": owner.host, "seconds": round(time.time() - owner.started)}


def print_status(found: dict[str, Any], console: Console) -> None:
    """The answer of `pairmill status`."""
    console.print(f"recipe {one_line(found['recipe'], 60)}: {found['rows']:,} rows in {found['parts']:,} part{'' if found['parts'] == 1 else 's'}")
    working = found["working"]
    if working:
        console.print(f"running: process {working['process']} on {working['host']}, for {duration(working['seconds'])}")
    elif found["state"] == "finished":
        console.print("finished: every stage of every part is committed and up to date")
    else:
        console.print(f"not running; {found['parts_finished']:,} of {found['parts']:,} parts are through; run the same command again to go on")
    stopped = found["stopped"]
    if stopped and not working:
        when = datetime.fromtimestamp(stopped["at"]).astimezone().isoformat(" ", "seconds")
        console.print(plain(f"stopped by the failure budget of {stopped['stage']} ({when}): {one_line(stopped['why'], 600)}"))
    console.print(f"dataset: {found['dataset'] or 'not written (no manifest.json)'}\n")
    numbers = ("parts", "in", "kept", "dropped", "failed")
    table = plain_table("stage", *numbers, right=numbers)
    for line in found["stages"]:
        judged = f"{line['judged']:,}/{line['parts']:,}"
        table.add_row(line["stage"], judged, *(f"{line[key]:,}" for key in ("in", "kept", "dropped", "failed")))
    console.print(table)
    if "account" in found:
        console.print()
        print_account(found["account"], console)
