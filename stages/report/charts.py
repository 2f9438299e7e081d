"""Charts as inline SVG. Drawn here and not by a script of 4.7 MB (plotly): the page shows them at once, also with scripts
switched off, and a content security policy can forbid every script. Only numbers and escaped labels go in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from stages.report.histograms import Bars

WIDTH, HEIGHT = 360, 168
LEFT, RIGHT, TOP, BOTTOM = 8, 8, 24, 20
MOST_POINTS = 240
CLASSES = ("kept", "elsewhere", "here")


@dataclass(frozen=True)
class Line:
    """A vertical line at a value, with its label."""

    value: float
    label: str


def number(value: float) -> str:
    """A number for people: 4 digits that matter, thousands grouped."""
    if not math.isfinite(value):
        return "-"
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def ticks(start: float, stop: float, most: int = 6) -> list[float]:
    """Round numbers from `start` to `stop`: multiples of 1, 2 or 5 times a power of ten, at most `most`."""
    power = 10.0 ** math.floor(math.log10((stop - start) / most))
    step = next(power * times for times in (1, 2, 5, 10, 20) if (stop - start) / (power * times) <= most - 1)
    return [round(place * step, 12) for place in range(math.ceil(start / step), math.floor(stop / step) + 1)]


def seconds(value: float) -> str:
    """Seconds for people: two decimals below ten."""
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}"


def _svg(width: int, height: int, label: str, pieces: list[str]) -> Markup:
    head = f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
    return Markup(head + "".join(pieces) + "</svg>")


def histogram(bars: Bars, lines: list[Line], label: str, words: tuple[str, ...]) -> Markup:
    """Stacked bars (series from the bottom) with vertical lines; each bar tells its numbers when pointed at."""
    heights = bars.heights.astype(float)
    top, most = heights.sum(axis=1), max(1.0, float(heights.sum(axis=1).max(initial=0)))
    inner, floor = WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM
    scale = (floor - TOP) / most
    each = inner / len(heights)
    pieces = []
    for place in np.flatnonzero(top > 0).tolist():
        x, y = LEFT + place * each, float(floor)
        start = bars.start + place * bars.width
        told = ", ".join(f"{int(count):,} {word}" for count, word in zip(heights[place], words, strict=True))
        pieces.append(f"<g><title>{escape(f'{number(start)} to {number(start + bars.width)}: {told}')}</title>")
        for series, count in enumerate(heights[place].tolist()):
            if count:
                size = max(count * scale, 0.8)
                y -= size
                pieces.append(f'<rect class="{CLASSES[series]}" x="{x:.2f}" y="{y:.2f}" width="{max(0.5, each - 0.7):.2f}" height="{size:.2f}"/>')
        pieces.append("</g>")
    pieces.append(f'<line class="axis" x1="{LEFT}" y1="{floor}" x2="{WIDTH - RIGHT}" y2="{floor}"/>')
    for value in ticks(bars.start, bars.stop):
        x = LEFT + (value - bars.start) / (bars.stop - bars.start) * inner
        anchor = "start" if x < LEFT + 12 else "end" if x > WIDTH - RIGHT - 12 else "middle"
        pieces.append(f'<text x="{x:.1f}" y="{HEIGHT - 5}" text-anchor="{anchor}">{number(value)}</text>')
    for line in lines:
        if bars.start <= line.value <= bars.stop:
            pieces += _threshold(LEFT + (line.value - bars.start) / (bars.stop - bars.start) * inner, floor, line.label)
    return _svg(WIDTH, HEIGHT, label, pieces)


def _threshold(x: float, floor: float, label: str) -> list[str]:
    anchor = "start" if x < WIDTH * 0.7 else "end"
    shift = 3 if anchor == "start" else -3
    return [
        f'<line class="limit" x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{floor}"/>',
        f'<text class="limit" x="{x + shift:.1f}" y="{TOP - 10}" text-anchor="{anchor}">{escape(label)}</text>',
    ]


def share_bar(pieces: list[tuple[str, float, float]]) -> Markup:
    """A bar of the full width: (class, start, length) as shares from 0 to 1."""
    rects = [
        f'<rect class="{name}" x="{start * 100:.3f}%" y="0" width="{max(length * 100, 0.25):.3f}%" height="100%"/>'
        for name, start, length in pieces
        if length > 0
    ]
    return Markup('<svg class="bar" aria-hidden="true">' + "".join(rects) + "</svg>")


def curve(xs: list[float], ys: list[float], label: str) -> Markup:
    """A line over steps; long ones as means of equal stretches. Values that are not finite are left out."""
    width, height = 440, 180
    points = np.array([(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)])
    if len(points) < 2:
        return Markup("")
    points = np.array([chunk.mean(axis=0) for chunk in np.array_split(points, min(len(points), MOST_POINTS))])
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    left, top, right, bottom = 56, 10, width - 10, height - 24
    place = [
        (left + (x - x0) / max(x1 - x0, 1e-12) * (right - left), bottom - (y - y0) / max(y1 - y0, 1e-12) * (bottom - top)) for x, y in points.tolist()
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in place)
    return _svg(width, height, label, [
        f'<line class="axis" x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/><line class="axis" x1="{left}" y1="{top}" x2="{left}" y2="{bottom}"/>',
        f'<polyline class="curve" points="{path}"/>',
        f'<text x="{left - 5}" y="{top + 8}" text-anchor="end">{y1:.2g}</text>',
        f'<text x="{left - 5}" y="{bottom}" text-anchor="end">{y0:.2g}</text>',
        f'<text x="{left}" y="{height - 8}">step {number(x0)}</text><text x="{right}" y="{height - 8}" text-anchor="end">step {number(x1)}</text>',
    ])  # fmt: skip
