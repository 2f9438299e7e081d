"""What the rendered web's server answers for each path: files written, and behaviours for routes.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.demo import image_bytes
from stages.demo.rows import Row, row_rng
from stages.demo.scenes import render

Behaviour = dict[str, Any]
"""One entry of routes.json; `server.py` lists the kinds."""


@dataclass(frozen=True)
class ServedAs:
    """A world's settings that decide its bytes: seed, side of the images in pixels, seconds that slow hosts take."""

    seed: int
    size: int
    slow_s: float


def publish(folder: Path, row: Row, items: list[Row], settings: ServedAs) -> dict[str, Behaviour]:
    """Write what a row's path serves, and say how the server shall answer; redirects add paths of their own."""
    simple: dict[str, Behaviour] = {
        "dead_link_404": {"kind": "status", "status": 404},
        "http_500": {"kind": "status", "status": 500},
        "too_many_redirects": {"kind": "redirect_loop"},
        "empty_body": {"kind": "empty", "content_type": "image/jpeg"},
    }
    if row.fault in simple:
        return {row.path: simple[row.fault]}
    if row.fault == "exact_dup":
        return {row.path: _file_behaviour(items[row.original])}
    target = folder / _file_of(row)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(_file_bytes(row, settings))
    served = _file_behaviour(row)
    if row.fault == "slow_timeout":
        return {row.path: {"kind": "slow", "seconds": settings.slow_s, "then": served}}
    if row.fault == "short_body":
        return {row.path: {**served, "kind": "short", "share": 0.6}}
    if row.fault == "opted_out":
        return {row.path: {**served, "headers": {"X-Robots-Tag": "noai"}}}
    rng = row_rng(settings.seed, row.item, 3)
    return _behind_redirects(row.path, served, rng) if rng.random() < 0.03 else {row.path: served}


def _behind_redirects(path: str, served: Behaviour, rng: np.random.Generator) -> dict[str, Behaviour]:
    """1 to 3 harmless redirects before the file."""
    steps = [path, *(f"/moved/{k}{path}" for k in range(int(rng.integers(1, 4))))]
    codes = rng.choice((301, 302, 307, 308), size=len(steps))
    routes: dict[str, Behaviour] = {
        here: {"kind": "redirect", "status": int(code), "to": there}
        for here, there, code in zip(steps[:-1], steps[1:], codes[:-1], strict=True)
    }
    return {**routes, steps[-1]: served}


def _file_of(row: Row) -> str:
    return f"images/{row.path.removeprefix('/img/')}"


def _file_behaviour(row: Row) -> Behaviour:
    content_type = image_bytes.CONTENT_TYPES[row.path.rsplit(".", 1)[1]]
    return {"kind": "file", "file": _file_of(row), "content_type": content_type}


def _file_bytes(row: Row, settings: ServedAs) -> bytes:
    if row.fault == "not_an_image":
        return image_bytes.HTML_PAGE
    rng = row_rng(settings.seed, row.item, 4)
    extension = row.path.rsplit(".", 1)[1]
    pixels = render(row.scene, settings.size)
    quality = int(rng.integers(82, 96))
    if row.fault == "tiny":
        pixels = image_bytes.shrink(pixels, max(8, settings.size // 6))
    elif row.fault == "bad_aspect":
        pixels = image_bytes.stretch(pixels, 5)
    elif row.fault == "re_encoded":
        quality = int(rng.integers(50, 75))
        pixels = image_bytes.shrink(pixels, int(settings.size * rng.choice((1.0, 0.8))))
    data = image_bytes.encode(pixels, extension, quality)
    if row.fault == "truncated":
        return image_bytes.truncate(data, float(rng.uniform(0.3, 0.7)))
    return image_bytes.corrupt(data, extension) if row.fault == "damaged" else data
