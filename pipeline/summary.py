"""What a run did, at its end: rows in, kept, dropped and failed, with numbers that add up."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from pipeline.console import plain_table
from pipeline.run import RunResult
from pipeline.run_view import RunView
from pipeline.safe_text import one_line
from pipeline.store import VALUES


def account(view: RunView) -> dict[str, Any]:
    """Where every row of the input went: input = kept + dropped + failed; both by (stage, reason), in the chain's order."""
    counts = view.counts()
    reasons: dict[str, list[dict[str, Any]]] = {"dropped": [], "failed": []}
    for node in view.chain.nodes:
        for key, rows in sorted(counts[node.name].items(), key=lambda item: -item[1]):
            kind, colon, reason = key.partition(":")
            if colon and kind in reasons:
                reasons[kind].append({"stage": node.name, "reason": reason, "rows": rows})
    kept = counts[view.chain.nodes[-1].name]["kept"]
    totals = {kind: sum(entry["rows"] for entry in entries) for kind, entries in reasons.items()}
    return {"input": sum(view.parts), "kept": kept, **totals, "by_reason": reasons}


def stage_table(view: RunView, result: RunResult | None = None) -> list[dict[str, Any]]:
    """Per stage: rows that reached it and what became of them, rows without a value, and what this run computed there."""
    counts, tally = view.counts(), result.tally if result is not None else None
    without = {node.name: 0 for node in view.chain.nodes}
    for (kind, stage, _), record in view.records().items():
        if kind == VALUES:
            without[stage] += record.counts.get("failed", 0)
    lines = []
    for node in view.chain.nodes:
        c = counts[node.name]
        line = {"stage": node.name, "in": c["kept"] + c["dropped"] + c["failed"], "kept": c["kept"], "dropped": c["dropped"], "failed": c["failed"]}
        line["null"] = without[node.name] if node.stage is not None and node.stage.on_failure == "keep" else 0
        if tally is not None:
            line |= {"computed": tally.computed.get(node.name, 0), "calls": tally.calls.get(node.name, 0)}
            line |= {"seconds": round(tally.seconds.get(node.name, 0.0), 2), "model_seconds": round(tally.model_seconds.get(node.name, 0.0), 2)}
            line["model"] = node.stage.model_name if node.stage is not None and node.stage.uses_model else None
        lines.append(line)
    return lines


def summary(result: RunResult) -> dict[str, Any]:
    """The whole summary as plain values."""
    view = result.view
    dataset = str(view.dataset) if (view.dataset / "manifest.json").is_file() else None
    return {
        "run": str(view.root),
        "rows": account(view),
        "stages": stage_table(view, result),
        "resolved": result.tally.resolves,
        "jobs": result.jobs,
        "dataset": dataset,
        "seconds": round(result.seconds, 2),
    }


def print_account(found: dict[str, Any], console: Console) -> None:
    """Rows in, kept, dropped and failed by stage and reason; the parts of each sum stand under it."""
    total = found["input"]
    table = plain_table("rows", "stage", "reason", "number", "share", right=("number", "share"))

    def line(word: str, stage: str, reason: str, rows: int) -> None:
        table.add_row(word, stage, reason, f"{rows:,}", f"{rows / total:.1%}" if total else "-")

    line("input", "", "", total)
    line("kept", "", "", found["kept"])
    for kind in ("dropped", "failed"):
        line(kind, "", "", found[kind])
        for entry in found["by_reason"][kind]:
            line("", entry["stage"], one_line(entry["reason"], 60), entry["rows"])
    console.print(table)
    adds = found["kept"] + found["dropped"] + found["failed"]
    sign = "=" if adds == total else "is not"
    console.print(f"{total:,} in {sign} {found['kept']:,} kept + {found['dropped']:,} dropped + {found['failed']:,} failed")


def print_summary(found: dict[str, Any], console: Console) -> None:
    """The end of `pairmill run`."""
    print_account(found["rows"], console)
    console.print()
    nulls = any(stage["null"] for stage in found["stages"])
    numbers = ("in", "kept", *(("null",) if nulls else ()), "computed", "model calls", "seconds")
    table = plain_table("stage", *numbers, right=numbers)
    for stage in found["stages"]:
        null = [f"{stage['null']:,}"] if nulls else []
        calls = f"{stage['calls']:,}" if stage["model"] else "-"
        table.add_row(stage["stage"], f"{stage['in']:,}", f"{stage['kept']:,}", *null, f"{stage['computed']:,}", calls, f"{stage['seconds']:,.1f}")
    console.print(table)
    if nulls:
        console.print("null: kept rows whose columns of that stage are empty, because it failed on them (on_failure: keep)")
    for name, told in found["jobs"].items():
        console.print(f"\n{name}", style="bold")
        print_nested(told, console, "  ")


def print_nested(value: Any, console: Console, indent: str) -> None:
    """Nested plain values, one line per leaf; a list of equal mappings becomes a table."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            if isinstance(inner, dict | list) and inner and not _short(inner):
                console.print(f"{indent}{one_line(key, 60)}:")
                print_nested(inner, console, indent + "  ")
            else:
                console.print(f"{indent}{one_line(key, 60)}: {leaf(inner)}")
    elif isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        keys = list(dict.fromkeys(key for entry in value for key in entry))
        right = tuple(key for key in keys if all(isinstance(entry.get(key), int | float) for entry in value))
        table = plain_table(*(one_line(key, 60) for key in keys), right=tuple(one_line(key, 60) for key in right))
        for entry in value:
            table.add_row(*(leaf(entry.get(key)) for key in keys))
        console.print(table)
    else:
        console.print(f"{indent}{leaf(value)}")


def _short(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(entry, dict | list) for entry in value)


def leaf(value: Any) -> str:
    """A plain value in words."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.1f}"
    if isinstance(value, list):
        return ", ".join(leaf(entry) for entry in value) or "-"
    return one_line(value, 400)
