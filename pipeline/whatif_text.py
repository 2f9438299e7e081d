"""The answer of `whatif` as text for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from pipeline.console import duration, plain_table, print_fact, span
from pipeline.safe_text import one_line


def print_whatif(found: dict[str, Any], console: Console) -> None:
    """Rows, texts, what would be measured, reasons, examples; the estimate's bounds in a sentence."""
    for change in found["changes"]:
        console.print(one_line(change, 160))
    _print_rows(found, console)
    _print_measure(found, console)
    _print_reasons(found, console)
    _print_examples(found, console)
    if found["resolved_again"]:
        console.print()
        print_fact(console, "resolved again in memory:", ", ".join(found["resolved_again"]))
    console.print(f"\nan estimate {found['estimate']}")


def _print_rows(found: dict[str, Any], console: Console) -> None:
    kept, texts = found["kept"], found["texts"]
    table = plain_table("", "now", "then", right=("now", "then"))
    table.add_row("rows kept", f"{kept['now']:,}", f"{kept['then']:,}")
    for key, title in (("captions", "with a caption"), ("words", "words"), ("clip_tokens", "CLIP tokens, about")):
        now, then = (texts[side][key] for side in ("now", "then"))
        if now is not None and then is not None:
            table.add_row(title, f"{now:,}", f"{then:,}")
    console.print()
    console.print(table)
    share = kept["both"] / max(1, kept["now"] + kept["only_then"])
    console.print(f"\nkept in both {kept['both']:,} ({share:.1%} of all kept in either), only now {kept['only_now']:,}, only then {kept['only_then']:,}")
    if found["undecided"]:
        console.print(f"undecided {found['undecided']:,}: not counted as kept or dropped; they must be measured first")


def _print_measure(found: dict[str, Any], console: Console) -> None:
    if not found["measure"]:
        return
    table = plain_table("to be measured at", "rows", "time", "model", right=("rows", "time", "model"))
    for entry in found["measure"]:
        times = (duration(entry[key]) if key in entry else "" for key in ("seconds", "model_seconds"))
        table.add_row(entry["stage"], span(tuple(entry["rows"])), *times)
    console.print()
    console.print(table)


def _print_reasons(found: dict[str, Any], console: Console) -> None:
    changed = [entry for entry in found["stages"] if entry["now"] != entry["then"]]
    table = plain_table("leaving at", "reason", "now", "then", "change", right=("now", "then", "change"))
    for entry in changed:
        now, then = entry["now"], entry["then"]
        table.add_row(one_line(entry["stage"], 30), one_line(entry["reason"], 30), f"{now:,}", f"{then:,}", f"{then - now:+,}")
    if changed:
        console.print()
        console.print(table)


def _print_examples(found: dict[str, Any], console: Console) -> None:
    title = ""
    for example in found["examples"]:
        if example["stage"] != title:
            title = example["stage"]
            console.print(f"\nat the boundary of {one_line(title, 60)}", style="bold")
        told = f"{example['side']} then, {example['now']} now; {example['value']}; {example['text']}"
        print_fact(console, example["sample_id"][:12], one_line(told, 300), 1, 12)
