"""Why rows failed or were dropped: counts by stage and reason with example rows, and what to do next."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pipeline.advice import advice_for
from pipeline.chain import Node
from pipeline.console import plain, print_fact
from pipeline.errors import RecipeError
from pipeline.registry import nearest
from pipeline.retry import PASSING_CODES
from pipeline.run import open_run
from pipeline.run_view import RunView
from pipeline.safe_text import one_line
from pipeline.store import VALUES, VERDICTS
from schemas.outcome import FailureCode, Outcome, Reason, Status

Key = tuple[str, str, str]  # stage, kind ('failed', 'null' or 'dropped'), reason
KINDS = ("failed", "null", "dropped")
LONGEST_DETAIL = 300
LONGEST_REASON = 30


def failures_of(
    out: str | Path, stage: str | None = None, reasons: str | None = None, examples: int = 3, dropped: bool = False
) -> dict[str, Any]:
    """Failed rows (with `dropped`, dropped ones too) by stage and reason, as plain values.

    Counts come from footers; examples are read from as few parts as give them, one part at a time. 'null' are rows that a stage with
    on_failure: keep failed on and kept. Raises RecipeError for a stage or reason that is not there.
    """
    view = open_run(out)
    wanted = _wanted(reasons)
    nodes = [view.chain.node(stage)] if stage is not None else view.chain.nodes
    dropped = dropped or (wanted is not None and bool(wanted & set(map(str, Reason))))
    counts: dict[Key, Counter[int]] = {}
    judged = len(view.parts)
    for node in nodes:
        kind = VALUES if _keeps(node) else VERDICTS
        for read in {VERDICTS, kind}:
            footers = view.store.records((read, node.name, part) for part in range(len(view.parts)))
            judged = min(judged, len(footers)) if read == VERDICTS else judged
            for (_, _, part), record in footers.items():
                for what, rows in record.counts.items():
                    key = _key(node, read, what)
                    if key is not None and (wanted is None or key[2] in wanted) and (dropped or key[1] != "dropped"):
                        counts.setdefault(key, Counter())[part] += rows
    total = sum(view.parts)
    groups = [_group(key, parts, total) for key, parts in counts.items()]
    groups.sort(key=lambda group: ([node.name for node in nodes].index(group["stage"]), KINDS.index(group["kind"]), -group["rows"], group["reason"]))
    shown = _examples(view, counts, examples)
    for group in groups:
        group["examples"] = shown.get((group["stage"], group["kind"], group["reason"]), [])
    return {"run": str(out), "rows": total, "parts": len(view.parts), "parts_judged": judged, "stage": stage, "groups": groups}


def _wanted(reasons: str | None) -> set[str] | None:
    if reasons is None:
        return None
    known = [*map(str, FailureCode), *map(str, Reason)]
    found: set[str] = set()
    for word in filter(None, (word.strip() for word in reasons.split(","))):
        if word == "passing":
            found |= PASSING_CODES
        elif word in known:
            found.add(word)
        else:
            raise RecipeError(f"--reason {word}: no such reason{nearest(word, [*known, 'passing'])}; failures: {', '.join(FailureCode)}")
    return found


def _keeps(node: Node) -> bool:
    return node.stage is not None and node.has_compute and node.stage.on_failure == "keep"


def _key(node: Node, read: str, what: str) -> Key | None:
    kind, colon, reason = what.partition(":")
    if not colon or kind not in ("failed", "dropped"):
        return None
    if read == VALUES:
        return (node.name, "null", reason)
    return (node.name, kind, reason)


def _group(key: Key, parts: Counter[int], total: int) -> dict[str, Any]:
    stage, kind, reason = key
    rows = parts.total()
    passing = kind != "dropped" and reason in PASSING_CODES
    advice = None if kind == "dropped" else advice_for(reason)
    return {"stage": stage, "kind": kind, "reason": reason, "rows": rows, "share": rows / total if total else 0.0, "passing": passing, "advice": advice}


def _examples(view: RunView, counts: dict[Key, Counter[int]], number: int) -> dict[Key, list[dict[str, Any]]]:
    """The first `number` rows of each group, in the order of the input."""
    found: dict[Key, list[dict[str, Any]]] = {}
    for key, parts in counts.items():
        rows = found[key] = []
        for part in sorted(parts):
            if len(rows) >= number:
                break
            rows += _rows_of(view, key, part, number - len(rows))
    return found


def _rows_of(view: RunView, key: Key, part: int, number: int) -> list[dict[str, Any]]:
    stage, kind, reason = key
    names = ("outcome", "failure", "failure_detail") if kind == "null" else ("status", "reason", "detail")
    table = view.store.read(VALUES if kind == "null" else VERDICTS, stage, part, list(names))
    source = view.store.read(VALUES, "source", part, ["sample_id", "url"])
    if table is None or source is None:
        return []
    state = {"null": int(Outcome.FAILED), "failed": int(Status.FAILED), "dropped": int(Status.DROPPED)}[kind]
    places = np.flatnonzero((table[names[0]].to_numpy() == state) & (table[names[1]].to_numpy(zero_copy_only=False) == reason))[:number].tolist()
    return [
        {
            "sample_id": source["sample_id"][row].as_py().hex(),
            "part": part,
            "row": row,
            "url": source["url"][row].as_py(),
            "detail": table[names[2]][row].as_py(),
        }
        for row in places
    ]


def next_steps(found: dict[str, Any]) -> list[tuple[str, str]]:
    """(sentence, command to type or '') of what may be done about the failures found."""
    steps = []
    failed = [group for group in found["groups"] if group["kind"] != "dropped"]
    stage = f" --stage {found['stage']}" if found["stage"] else ""
    passing = [group for group in failed if group["passing"]]
    if passing:
        rows = sum(group["rows"] for group in passing)
        steps.append((f"{_rows(rows)} failed for a reason that may pass; to try them again, and nothing else:", f"pairmill retry {found['run']}{stage}"))
    lasting = [group for group in failed if not group["passing"] and group["stage"] != "source"]
    if lasting:
        worst = max(lasting, key=lambda group: group["rows"])
        command = f"pairmill retry {found['run']} --stage {worst['stage']} --reason {worst['reason']}"
        steps.append((f"{_rows(sum(group['rows'] for group in lasting))} failed for a reason that seldom passes; where its cause is mended:", command))
    example = next((row for group in found["groups"] for row in group["examples"]), None)
    if example is not None:
        steps.append(("one row's whole life:", f"pairmill explain {found['run']} {example['sample_id'][:12]}"))
    return steps


def _rows(number: int) -> str:
    return f"{number:,} row{'' if number == 1 else 's'}"


def print_failures(found: dict[str, Any], console: Console) -> None:
    """The answer of `pairmill failures`."""
    if found["parts_judged"] < found["parts"]:
        console.print(plain(f"not finished: {found['parts_judged']:,} of {found['parts']:,} parts are through all stages shown here"))
    if not found["groups"]:
        console.print(plain(f"no row of {found['rows']:,} {'matches' if found['stage'] else 'failed'}; --dropped shows rows that rules dropped"))
        return
    reasons = [one_line(group["reason"], LONGEST_REASON) for group in found["groups"]]
    width = max(map(len, reasons))
    before = None
    for group, reason in zip(found["groups"], reasons, strict=True):
        here = (group["stage"], group["kind"])
        if here != before:
            console.print(plain(f"{'' if before is None else chr(10)}{group['stage']}: {_WORDS[group['kind']]}", style="bold"))
            before = here
        passing = "  may pass" if group["passing"] else ""
        console.print(plain(f"  {reason:<{width}}  {group['rows']:>9,}  {group['share']:>6.1%}{passing}"))
        if group["advice"]:
            print_fact(console, "", group["advice"], 3)
        for row in group["examples"]:
            print_fact(console, row["sample_id"][:12], one_line(row["url"] or "", LONGEST_DETAIL) + _short(row["detail"]), 4)
    for sentence, command in next_steps(found):
        console.print(plain(f"\n{sentence}"))
        console.print(plain(f"  {command}"), soft_wrap=True)


_WORDS = {"failed": "failed", "null": "failed and kept without its columns (on_failure: keep)", "dropped": "dropped"}


def _short(detail: str | None) -> str:
    """A detail on a line of its own, cut; --json has it whole."""
    if not detail:
        return ""
    return f"\n{one_line(' '.join(detail.split()), LONGEST_DETAIL)}"
