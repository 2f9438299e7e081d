"""Evaluation photos planted among others: what share `decontaminate` finds, and what it takes for one that is none.

    bench_decontaminate.py --photos DIR [--evaluation 500] [--count 5000] [--rendered 0] [--border 8] [--misses DIR] [--out FILE.json]

The first `--evaluation` photos by name are the evaluation set; each is planted three times among the others: as a JPEG of quality 50, at half size, and
cut by 8 % of both sides with a border and a line of text. Cut, colour of the border (white, black, any), its width (3 % to `--border` % of the shorter
side), and place, size and colour of the text are drawn by a seed. `--rendered N`: so many rendered scenes are asked for as well, none of which is in the set;
and a tenth of them once more against 500 other rendered scenes, as the harder question. `cpu_ms_per_other`: processor time of decoding,
hashing and looking up.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from stages.demo.image_bytes import encode
from stages.demo.scenes import draw_scene, render
from stages.images.decode import decode
from stages.images.leaks import SIDE, index_picture, looks
from stages.index.evaluation import EvaluationSets
from stages.index.files import Index, make_index

LEAST = 0.6
BATCH = 64
COLOURS = ((255, 255, 255), (0, 0, 0))


def evaluation_index(pictures: list[np.ndarray]) -> Index:
    rows = []
    for number, pixels in enumerate(pictures):
        windows, box, thumb = index_picture(pixels)
        rows.append({"item": f"{number:06d}", "windows": windows, "box": box, "thumb": thumb})
    return make_index("bench", pa.Table.from_pylist(rows))


def planted(pixels: np.ndarray, draw: np.random.Generator, widest: float) -> dict[str, bytes]:
    """Name of the edit -> the bytes of the copy."""
    half = cv2.resize(pixels, (pixels.shape[1] // 2, pixels.shape[0] // 2), interpolation=cv2.INTER_AREA)
    disguised = encode(_disguised(pixels, draw, widest), "jpg", 85)
    return {"jpeg 50": encode(pixels, "jpg", 50), "half size": encode(half, "jpg", 90), "crop, border, text": disguised}


def _disguised(pixels: np.ndarray, draw: np.random.Generator, widest: float) -> np.ndarray:
    """8 % of both sides cut off, divided at random; a line of text; a border of one colour."""
    height, width = pixels.shape[:2]
    down, right = round(height * 0.08), round(width * 0.08)
    top, left = int(draw.integers(0, down + 1)), int(draw.integers(0, right + 1))
    cut = pixels[top : height - (down - top), left : width - (right - left)].copy()
    scale = draw.uniform(0.05, 0.08) * cut.shape[0] / 22
    place = (round(0.05 * cut.shape[1]), round(cut.shape[0] * draw.uniform(0.1, 0.95)))
    colour = COLOURS[int(draw.integers(2))]
    cv2.putText(cut, "www.example.com", place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, max(1, round(scale * 2)), cv2.LINE_AA)
    edge = max(1, round(min(cut.shape[:2]) * draw.uniform(0.03, widest)))
    border = (*COLOURS, tuple(int(value) for value in draw.integers(0, 256, 3)))[int(draw.integers(3))]
    return cv2.copyMakeBorder(cut, edge, edge, edge, edge, cv2.BORDER_CONSTANT, value=border)


def asked(sets: EvaluationSets, images: Iterator[np.ndarray]) -> Iterator[tuple[str, int, float] | None]:
    """The nearest evaluation picture of each."""
    waiting = []
    for pixels in images:
        waiting.append(looks(pixels))
        if len(waiting) == BATCH:
            yield from sets.nearest_pictures(waiting)
            waiting = []
    yield from sets.nearest_pictures(waiting)


def scenes(first: int, count: int) -> Iterator[np.ndarray]:
    return (render(draw_scene(first + number), 128) for number in range(count))


def loaded(data: bytes) -> np.ndarray:
    return decode(data, min_width=2 * SIDE, min_height=2 * SIDE)


def measure(photos: list[Path], evaluation: int, widest: float, misses: Path | None) -> tuple[dict[str, object], EvaluationSets]:
    pictures = [decode(path.read_bytes()) for path in photos[:evaluation]]
    sets = EvaluationSets([evaluation_index(pictures)], 10, 8, False)
    draw = np.random.default_rng(0)
    copies = [(number, name, data) for number, pixels in enumerate(pictures) for name, data in planted(pixels, draw, widest).items()]
    found: dict[str, list[bool]] = {}
    wrong = 0
    for (number, name, data), answer in zip(copies, asked(sets, (loaded(data) for _, _, data in copies)), strict=True):
        hit = answer is not None and answer[2] >= LEAST
        right = hit and answer is not None and answer[0] == f"bench/{number:06d}"
        found.setdefault(name, []).append(right)
        wrong += hit and not right
        if misses and not right:
            (misses / f"{number:06d}-{name.replace(', ', '-').replace(' ', '-')}.jpg").write_bytes(data)
    started = time.process_time()
    others = list(asked(sets, (loaded(path.read_bytes()) for path in photos[evaluation:])))
    seconds = time.process_time() - started
    alarms = [(photos[evaluation + at].name, *answer) for at, answer in enumerate(others) if answer is not None and answer[2] >= LEAST]
    best = sorted((answer[2] for answer in others if answer is not None), reverse=True)[:5]
    report: dict[str, object] = {
        "evaluation": evaluation, "others": len(others), "recall": {name: round(float(np.mean(hits)), 4) for name, hits in found.items()},
        "planted_found_as_another": wrong, "false_alarms": alarms, "looked_closely": sum(answer is not None for answer in others),
        "highest_agreements_of_others": best, "cpu_ms_per_other": round(1000 * seconds / max(1, len(others)), 3),
    }  # fmt: skip
    return report, sets


def rendered(sets: EvaluationSets, count: int) -> dict[str, object]:
    started = time.perf_counter()
    alarms = looked = 0
    for number, answer in enumerate(asked(sets, scenes(0, count)), 1):
        looked += answer is not None
        alarms += answer is not None and answer[2] >= LEAST
        if number % 10_000 == 0:
            print(f"{number} scenes, {alarms} false alarms, {looked} looked at closely, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return {"scenes": count, "false_alarms": alarms, "looked_closely": looked, "seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos (Flickr8k)")
    parser.add_argument("--evaluation", type=int, default=500, help="so many of them, the first by name, are the evaluation set")
    parser.add_argument("--count", type=int, default=5000, help="photos in all")
    parser.add_argument("--rendered", type=int, default=0, help="rendered scenes that are asked for too")
    parser.add_argument("--border", type=float, default=8, help="widest border in percent of the shorter side")
    parser.add_argument("--misses", type=Path, help="folder for the copies that were not found")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    photos = sorted(options.photos.glob("*.jpg"))[: options.count]
    if not photos:
        raise SystemExit(f"{options.photos}: no *.jpg in this folder")
    report, sets = measure(photos, options.evaluation, options.border / 100, options.misses)
    if options.rendered:
        report["rendered"] = rendered(sets, options.rendered)
        scenes_set = EvaluationSets([evaluation_index(list(scenes(10_000_000, 500)))], 10, 8, False)
        report["rendered_against_500_scenes"] = rendered(scenes_set, max(1, options.rendered // 10))
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
