"""Recall of near duplicates per edit and strength, and what is joined that should not be: both hashes, embeddings of the bundled CLIP, and hash or embedding.

    bench_near_dup_recall.py --photos DIR [--count 5000] [--clip] [--processes 2] [--out FILE.json]
    bench_near_dup_recall.py --rendered 5000 [--clip] [--out FILE.json]        # scenes of the rendered world, which the bundled CLIP knows

Each picture gets one copy per edit. A copy is found at a distance when its hash is that near to its photo's. False pairs are all pairs of different photos
within the distance, as a share of the photos; joined wrongly are photos that share a component with another photo. Also the precision of joining photos with
all their copies below each distance: of all joined pairs (photo or copy), those of one photo.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stages.demo.image_bytes import encode
from stages.demo.scenes import draw_scene, render
from stages.dups.hamming import near_pairs
from stages.dups.pairs import join
from stages.images.crop import crop_image
from stages.images.decode import decode
from stages.images.hashes import hash_image
from stages.models import open_clip
from stages.vectors.blocks import unit

DISTANCES = {"phash": (2, 4, 6, 8, 10, 12), "pdq": (16, 24, 31, 36, 40)}
COSINES = (0.9, 0.93, 0.95, 0.97, 0.98, 0.99)
JOINED = (("phash", 2), ("phash", 6), ("pdq", 31))  # joined with each cosine
LEAST_QUALITY = 50


def edits(number: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Name with strength -> edit of pixels uint8 [H, W, 3]."""
    draw = np.random.default_rng(number)
    found: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    for quality in (30, 50, 70, 85, 95):
        found[f"jpeg {quality}"] = lambda pixels, quality=quality: decode(encode(pixels, "jpg", quality))
    for scale in (0.3, 0.5, 0.75, 1.5, 2.0):
        found[f"resize {scale:g}"] = lambda pixels, scale=scale: _resized(pixels, scale)
    for share in (2, 5, 10):
        found[f"crop {share}%"] = lambda pixels, share=share: _cropped(pixels, share / 100, draw)
    for share in (3, 8):
        found[f"border {share}%"] = lambda pixels, share=share: _bordered(pixels, share / 100)
    for size in (5, 10):
        found[f"text {size}%"] = lambda pixels, size=size: _lettered(pixels, size / 100)
    found["grey"] = lambda pixels: np.repeat(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    found["mirror"] = lambda pixels: np.ascontiguousarray(pixels[:, ::-1])
    return found


def _resized(pixels: np.ndarray, scale: float) -> np.ndarray:
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    return decode(encode(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC), "jpg", 90))


def _cropped(pixels: np.ndarray, share: float, draw: np.random.Generator) -> np.ndarray:
    """`share` of the width and of the height is cut off, divided at random between the two sides."""
    height, width = pixels.shape[:2]
    down, right = round(height * share), round(width * share)
    top, left = int(draw.integers(0, down + 1)), int(draw.integers(0, right + 1))
    return decode(encode(pixels[top : height - (down - top), left : width - (right - left)], "jpg", 90))


def _bordered(pixels: np.ndarray, share: float) -> np.ndarray:
    edge = max(1, round(min(pixels.shape[:2]) * share))
    return decode(encode(cv2.copyMakeBorder(pixels, edge, edge, edge, edge, cv2.BORDER_CONSTANT, value=(255, 255, 255)), "jpg", 90))


def _lettered(pixels: np.ndarray, size: float) -> np.ndarray:
    """A line of text across the lower part, its height a share of the picture's."""
    picture = pixels.copy()
    height = picture.shape[0]
    scale = size * height / 22
    place = (round(0.05 * picture.shape[1]), round(height * 0.92))
    cv2.putText(picture, "www.example.com", place, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), max(1, round(scale * 2)), cv2.LINE_AA)
    return decode(encode(picture, "jpg", 90))


def pictures(options: argparse.Namespace) -> list[Callable[[], np.ndarray]]:
    """What gives the pixels of each picture."""
    if options.rendered:
        return [partial(_scene, 10**7 + seed) for seed in range(options.rendered)]
    return [partial(_photo, path) for path in sorted(options.photos.glob("*.jpg"))[: options.count]]


def _scene(seed: int) -> np.ndarray:
    return render(draw_scene(seed))


def _photo(path: Path) -> np.ndarray:
    return decode(path.read_bytes())


Row = tuple[str, int, bytes, bytes, int, np.ndarray | None]


def hashes_of(found: list[Callable[[], np.ndarray]], clip: bool, seconds: float, processes: int) -> list[Row]:
    """(edit, '' for the picture itself; its number; phash; pdq; the lower of the two qualities; embedding float16 [D], None without clip) of the pictures
    that `seconds` were enough for, in their order."""
    work = partial(_of_one, clip=clip, until=time.monotonic() + seconds)
    with ProcessPoolExecutor(processes) as pool:
        return list(chain.from_iterable(pool.map(work, range(len(found)), found, chunksize=8)))


def _of_one(number: int, make: Callable[[], np.ndarray], clip: bool, until: float) -> list[Row]:
    cv2.setNumThreads(1)
    if time.monotonic() > until:
        return []
    pixels = make()
    copies = {"": pixels} | {name: edit(pixels) for name, edit in edits(number).items()}
    embedded = _embedded(list(copies.values()), _model()) if clip else [None] * len(copies)
    rows: list[Row] = []
    for (name, picture), vector in zip(copies.items(), embedded, strict=True):
        hashed = hash_image(picture, pdq=True)
        assert hashed.pdq is not None and hashed.pdq_quality is not None
        rows.append((name, number, hashed.phash, hashed.pdq, min(hashed.quality, hashed.pdq_quality), vector))
    return rows


@cache
def _model() -> Any:
    return open_clip.load({"kind": "open_clip", "weights": "bundled:rendered_clip", "device": "cpu", "batch_size": 20})


def _embedded(copies: list[np.ndarray], model: Any) -> np.ndarray:
    facts = model.describe()
    crops = [crop_image(encode(pixels, "jpg", 95), facts["image_size"], facts["resize_mode"], facts["interpolation"]) for pixels in copies]
    return model.embed_images(np.stack(crops)).astype(np.float16)


def measure(rows: list[Row]) -> dict[str, Any]:
    """Report of the pictures and their copies."""
    names = list(dict.fromkeys(name for name, *_ in rows))
    edit, quality = np.array([names.index(row[0]) for row in rows]), np.array([row[4] for row in rows])
    number = np.unique([row[1] for row in rows], return_inverse=True)[1]  # no gaps where time ran out
    report: dict[str, Any] = {"photos": int((edit == 0).sum()), "photos_below_quality": int(((quality < LEAST_QUALITY) & (edit == 0)).sum())}
    hashes = {kind: np.frombuffer(b"".join(row[place] for row in rows), np.uint8).reshape(len(rows), -1) for kind, place in (("phash", 2), ("pdq", 3))}
    seen = np.flatnonzero(quality >= LEAST_QUALITY)
    for kind, steps in DISTANCES.items():
        left, right, apart = _listed(hashes[kind], seen, max(steps))
        of_one, plain = number[left] == number[right], (edit[left] == 0) & (edit[right] == 0)
        report[kind] = {}
        for step in steps:
            near = apart <= step
            sums = [int((near & which).sum()) for which in (of_one, ~of_one, ~of_one & plain)]
            report[kind][str(step)] = _column(_found(hashes[kind], edit, number, quality, step), edit, names, *sums)
    if rows[0][5] is not None:
        vectors = unit(np.stack([row[5] for row in rows]))
        report |= _with_embeddings(vectors, hashes, edit, number, quality, names)
    return report


def _found(bits: np.ndarray, edit: np.ndarray, number: np.ndarray, quality: np.ndarray, distance: int) -> np.ndarray:
    """Which rows are within the distance of their own photo, both with enough to see (bool [N])."""
    first = np.flatnonzero(edit == 0)[number]
    return (np.bitwise_count(bits ^ bits[first]).sum(1) <= distance) & (quality >= LEAST_QUALITY) & (quality[first] >= LEAST_QUALITY)


def _with_embeddings(
    vectors: np.ndarray, hashes: dict[str, np.ndarray], edit: np.ndarray, number: np.ndarray, quality: np.ndarray, names: list[str]
) -> dict[str, Any]:
    """Columns of each cosine, and of each hash at a distance or a cosine: a pair counts where one of the two finds it."""
    first = np.flatnonzero(edit == 0)[number]
    cosine = np.einsum("ij,ij->i", vectors, vectors[first])
    sums = _semantic_pairs(vectors, number, edit == 0)
    columns: dict[str, Any] = {"cosine": {str(least): _column(cosine >= least, edit, names, *sums[least]) for least in COSINES}}
    for kind, distance in JOINED:
        near = _found(hashes[kind], edit, number, quality, distance)
        left, right, _ = _listed(hashes[kind], np.flatnonzero(quality >= LEAST_QUALITY), distance)
        apart, own = np.einsum("ij,ij->i", vectors[left], vectors[right]), number[left] == number[right]
        bare = (edit[left] == 0) & (edit[right] == 0)
        columns[f"{kind} {distance} or cosine"] = {}
        for least in COSINES:
            more = apart < least
            added = [int((more & which).sum()) for which in (own, ~own, ~own & bare)]
            both = [a + b for a, b in zip(sums[least], added, strict=True)]
            columns[f"{kind} {distance} or cosine"][str(least)] = _column((cosine >= least) | near, edit, names, *both)
    return columns


def _column(found: np.ndarray, edit: np.ndarray, names: list[str], right: int, wrong: int, photos: int) -> dict[str, Any]:
    recall = {name: round(float(found[edit == nth].mean()), 4) for nth, name in enumerate(names) if nth}
    return {"recall": recall, "pairs_of_one_photo": right, "pairs_of_two": wrong, "precision": round(right / max(1, right + wrong), 6), "photo_pairs": photos}


def _semantic_pairs(vectors: np.ndarray, number: np.ndarray, plain: np.ndarray) -> dict[float, list[int]]:
    """Pairs with at least each cosine: of one picture, of two, of two without edits."""
    sums = {least: [0, 0, 0] for least in COSINES}
    for start in range(0, len(vectors), 2048):
        products = vectors[start : start + 2048] @ vectors[start:].T
        left, right = np.nonzero(products >= COSINES[0])
        once = left < right
        left, right = left[once], right[once]
        near, same = products[left, right], number[start + left] == number[start + right]
        bare = plain[start + left] & plain[start + right]
        for least in COSINES:
            for nth, which in enumerate((same, ~same, ~same & bare)):
                sums[least][nth] += int((which & (near >= least)).sum())
    return sums


def _listed(bits: np.ndarray, rows: np.ndarray, distance: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of `rows` within the distance and their distance, equal hashes too. Raises SystemExit where a clump hides pairs."""
    values, which = np.unique(bits[rows], axis=0, return_inverse=True)
    order, counts = np.argsort(which, kind="stable"), np.bincount(which)
    starts, clumps = np.cumsum(counts) - counts, []
    pairs = join(list(near_pairs(values, distance, on_clump=lambda: clumps.append(1))))
    if clumps:
        raise SystemExit(f"pairs within {distance} bits are not listed: too many hashes are near each other")
    every = np.arange(len(values))
    left, right = np.concatenate([pairs.left, every]), np.concatenate([pairs.right, every])
    times = counts[left] * counts[right]
    pair = np.repeat(np.arange(len(left)), times)
    nth = np.arange(len(pair)) - np.repeat(np.cumsum(times) - times, times)
    a, b = starts[left[pair]] + nth // counts[right[pair]], starts[right[pair]] + nth % counts[right[pair]]
    once = (left[pair] != right[pair]) | (a < b)
    apart = np.concatenate([pairs.distance, np.zeros(len(values), np.uint8)])[pair]
    return rows[order[a[once]]], rows[order[b[once]]], apart[once]


def table(report: dict[str, Any]) -> str:
    """Markdown: a row per edit, a column per hash and distance."""
    columns = [(kind, step) for kind, steps in report.items() if isinstance(steps, dict) for step in steps]
    lines = ["| Edit | " + " | ".join(f"{kind} {step}" for kind, step in columns) + " |", "|---|" + "---|" * len(columns)]
    first = report[columns[0][0]][columns[0][1]]["recall"]
    for name in first:
        lines.append(f"| {name} | " + " | ".join(f"{report[kind][step]['recall'][name]:.3f}" for kind, step in columns) + " |")
    for name, key in (("precision", "precision"), ("wrong pairs", "pairs_of_two"), ("of them photo with photo", "photo_pairs")):
        lines.append(f"| {name} | " + " | ".join(str(report[kind][step][key]) for kind, step in columns) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photos (Flickr8k)")
    parser.add_argument("--count", type=int, default=5000, help="the first so many by name")
    parser.add_argument("--rendered", type=int, default=0, help="so many rendered scenes in place of photos")
    parser.add_argument("--seconds", type=float, default=1e9, help="take no further picture after that time")
    parser.add_argument("--clip", action="store_true", help="also the embeddings of the bundled CLIP, which knows the rendered world alone")
    parser.add_argument("--processes", type=int, default=1, help="pictures are edited and hashed in so many processes")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    found = pictures(options) if options.rendered or options.photos else []
    if not found:
        raise SystemExit("name a folder of *.jpg with --photos, or a number of scenes with --rendered")
    report = measure(hashes_of(found, options.clip, options.seconds, options.processes))
    print(f"{report['photos']} pictures, {report['photos_below_quality']} below quality {LEAST_QUALITY}\n\n{table(report)}")
    if options.out:
        options.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
