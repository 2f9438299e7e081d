"""Terminal output: results on standard output, everything else on standard error; 80 columns, no colour where NO_COLOR is set."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def results() -> Console:
    """Console of standard output."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=False)


def notes() -> Console:
    """Console of standard error."""
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    """One note on standard error, never cut into lines by us where it is no terminal."""
    notes().print(Text(text), soft_wrap=not sys.stderr.isatty())


def print_json(value: Any) -> None:
    """A result for programs: indented JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def command_line() -> str:
    """The command that is running, as it can be typed again."""
    return shlex.join(["pairmill", *sys.argv[1:]])


def number(value: int) -> str:
    """A count in at most 7 characters: 99,999 or 1.23M."""
    if value < 1_000_000:
        return f"{value:,}"
    return f"{value / 1e6:.3g}M" if value < 999_500_000 else f"{value / 1e9:.3g}G"


def span(pair: tuple[int, int]) -> str:
    """A number with its bounds: '141', 'at most 141' or '20 to 141'."""
    low, high = pair
    if low == high:
        return f"{high:,}"
    return f"at most {high:,}" if low == 0 else f"{low:,} to {high:,}"


def duration(seconds: float) -> str:
    """0:07, 12:34 or 1:02:03."""
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def plain_table(*headers: str, right: tuple[str, ...] = (), wide: str = "") -> Table:
    """A table without lines. right: columns of numbers; wide: the column that takes the rest of the width and wraps."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for header in headers:
        table.add_column(header, justify="right" if header in right else "left", overflow="fold", no_wrap=header in right, ratio=1 if header == wide else None)
    if wide:
        table.expand = True
    return table
