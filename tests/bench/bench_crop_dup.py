"""Cropped, framed and written-on copies through the machine: near_dup, semantic_dup and crop_dup behind one dedup, with the bundled CLIP.

    bench_crop_dup.py --scenes 300 [--first 30000000] [--set dedup.min_match=0.95 ...]     # scenes of the rendered world
    bench_crop_dup.py --photos DIR [--count 300] [--seconds 300] [--set ...]              # photos, which the bundled CLIP does not know

Each picture gets one copy per edit, and all become a folder of images, which the recipe below reads. Recall: the share of copies in the component of their
picture. Precision: of all pairs of rows in one component, those of one picture. What the components join stands here, not single pairs: chains count in full.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from bench_dups_together import EDITS
from bench_near_dup_recall import edits

from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, RunResult, run
from stages.demo.image_bytes import encode
from stages.demo.scenes import draw_scene, render
from stages.images.decode import decode

RULES: dict[str, dict[str, Any]] = {
    "image_hash": {"trimmed": True, "thumbnail": True},
    "clip_score": {"model": "clip", "min": None},
    "near_dup": {"by": "pdq", "search_distance": 80, "min_quality": 0},
    "semantic_dup": {"search_cosine": 0.85},
    "crop_dup": {},
    "dedup": {"max_distance": 24, "semantic_bits": 24, "hash_difference": 20},
}


def recipe(folder: Path, changes: list[str]) -> dict[str, Any]:
    rules = {name: dict(values) for name, values in RULES.items()}
    for change in changes:
        name, value = change.split("=")
        stage, option = name.split(".")
        rules[stage][option] = json.loads(value)
    return {
        "name": "crops",
        "input": {"kind": "image_folder", "folder": str(folder), "rows_per_part": 1000},
        "models": {"clip": {"kind": "open_clip", "weights": "bundled:rendered_clip"}},
        "stages": ["read_images", *({name: values} for name, values in rules.items())],
    }


def pictures(options: argparse.Namespace) -> Iterator[Callable[[], np.ndarray]]:
    if options.photos:
        yield from (lambda path=path: decode(path.read_bytes()) for path in sorted(options.photos.glob("*.jpg"))[: options.count])
    else:
        yield from (lambda seed=seed: render(draw_scene(options.first + seed)) for seed in range(options.scenes))


def write_copies(folder: Path, options: argparse.Namespace) -> int:
    """Pictures as <number>-<edit>.png, with a text each; returns how many the time was enough for."""
    until = time.monotonic() + options.seconds
    number = 0
    for make in pictures(options):
        if time.monotonic() > until:
            break
        pixels, made = make(), edits(number)
        for nth, copy in enumerate([pixels, *(made[name](pixels) for name in EDITS)]):
            name = f"{number:05d}-{nth}"
            # A photo is stored as JPEG of high quality: as PNG its copies would fill the disk and the time.
            (folder / f"{name}.{'jpg' if options.photos else 'png'}").write_bytes(encode(copy, "jpg", 97) if options.photos else encode(copy, "png"))
            (folder / f"{name}.txt").write_text("a picture")
        number += 1
    return number


def measured(result: RunResult, count: int) -> tuple[dict[str, float], float, list[tuple[int, int, int]]]:
    """Recall per edit, precision, and the pairs of pictures that share a component with how many pairs of rows."""
    component: dict[tuple[int, int], str] = {}
    for part in range(len(result.view.parts)):
        for row in result.view.read(result.view.view(part), ["path", "dup_component"]).to_pylist():
            number, edit = (int(piece) for piece in Path(row["path"]).stem.split("-"))
            component[number, edit] = row["dup_component"] or f"alone {number} {edit}"
    recall = {name: sum(component[n, nth + 1] == component[n, 0] for n in range(count)) / count for nth, name in enumerate(EDITS)}
    members: dict[str, Counter[int]] = {}
    for (number, _), name in component.items():
        members.setdefault(name, Counter())[number] += 1
    wrong: Counter[tuple[int, int]] = Counter()
    right = 0
    for rows in members.values():
        right += sum(n * (n - 1) // 2 for n in rows.values())
        for a in rows:
            for b in rows:
                if a < b:
                    wrong[a, b] += rows[a] * rows[b]
    total = right + sum(wrong.values())
    return recall, right / max(1, total), [(a, b, n) for (a, b), n in wrong.most_common()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--first", type=int, default=30_000_000, help="seed of the first scene")
    parser.add_argument("--photos", type=Path, help="folder of photos in place of scenes")
    parser.add_argument("--count", type=int, default=5000, help="the first so many photos by name")
    parser.add_argument("--seconds", type=float, default=1e9, help="make copies of no further picture after that time")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.OPTION=JSON", help="change the recipe; several times: one run each")
    parser.add_argument("--keep", type=Path, help="a folder for pictures and run, which a later call finds again")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="pairmill-crops-") as scratch:
        base = options.keep or Path(scratch)
        folder = base / "images"
        if not folder.is_dir():
            folder.mkdir(parents=True)
            write_copies(folder, options)
        count = len(list(folder.glob("*-0.*"))) // 2
        print(f"{count} pictures, {count * (len(EDITS) + 1)} rows\n\n| Changed | precision | " + " | ".join(EDITS) + " |\n|---|---|" + "---|" * len(EDITS))
        for changes in [change.split() for change in options.set] or [[]]:
            result = run(build_recipe(recipe(folder, changes)), base / "run", RunOptions(executor="local", jobs=False))
            recall, precision, wrong = measured(result, count)
            print(f"| {' '.join(changes)} | {precision:.4f} | " + " | ".join(f"{share:.3f}" for share in recall.values()) + " |", flush=True)
            print(f"  ({len(wrong)} pairs of pictures joined wrongly: {wrong[:12]})")


if __name__ == "__main__":
    main()
