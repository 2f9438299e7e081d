"""Terminal output: results on standard output, everything else on standard error; 80 columns, no colour where NO_COLOR is set."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable
from typing import Any, Literal

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline.safe_text import one_line, safe, safe_json
from pipeline.secrets import mask


class SafeConsole(Console):
    """A console that shows every plain string through `safe`: no text from outside acts on the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        return super().render_str(safe(text), **options)


def plain(text: str, style: str = "") -> Text:
    """A text for the terminal that is no markup and acts on nothing."""
    return Text(safe(text), style=style)


def results() -> Console:
    """Console of standard output."""
    return SafeConsole(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=False)


def notes() -> Console:
    """Console of standard error."""
    return SafeConsole(file=sys.stderr, highlight=False, markup=False, emoji=False)


def say(text: str, whole: bool = False) -> None:
    """One note on standard error. whole: never cut into lines by us, so that a command in it can be copied."""
    notes().print(plain(mask(text)), soft_wrap=whole or not sys.stderr.isatty())


def print_json(value: Any) -> None:
    """A result for programs: indented JSON on standard output."""
    sys.stdout.write(safe_json(json.dumps(value, indent=1, ensure_ascii=False, default=str)) + "\n")


def command_line() -> str:
    """The command that is running, as it can be typed again."""
    return shlex.join(["pairmill", *sys.argv[1:]])


def some(names: Iterable[str], room: int = 140) -> str:
    """'a, b, c and 17 more': as many names as fit into `room` characters (one at least), for a message that must stay short."""
    known = [one_line(name, room) for name in names]
    shown = 1
    while shown < len(known) and len(", ".join(known[: shown + 1])) <= room:
        shown += 1
    return ", ".join(known[:shown]) + (f" and {len(known) - shown:,} more" if len(known) > shown else "")


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
        kept, spare = header in right, header == wide
        justify: Literal["left", "right"] = "right" if kept else "left"
        table.add_column(header, justify=justify, overflow="fold", no_wrap=kept, ratio=1 if spare else None, min_width=24 if spare else None)
    if wide:
        table.expand = True
    return table


def print_fact(console: Console, title: str, told: str, indent: int = 0, width: int = 0) -> None:
    """'title  told', folded so that its further lines stand under the first. width: of the title, to align several."""
    line = Table.grid(padding=(0, 1, 0, 0))
    line.add_column(min_width=width, no_wrap=True)
    line.add_column(overflow="fold")
    line.add_row(plain(title), plain(told))
    console.print(Padding(line, (0, 0, 0, indent), expand=False))
