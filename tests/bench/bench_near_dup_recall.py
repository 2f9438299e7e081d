"""Recall of near duplicates on photos per edit and strength, and what is joined that should not be, at each distance of both hashes.

    bench_near_dup_recall.py --photos DIR [--count 5000] [--out FILE.json]

Each photo gets one copy per edit. A copy is found at a distance when its hash is that near to its photo's. False pairs are all pairs of different photos
within the distance, as a share of the photos; joined wrongly are photos that share a component with another photo. Also the precision of joining photos with
all their copies below each distance: of all joined pairs (photo or copy), those of one photo.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from stages.demo.image_bytes import encode
from stages.dups.hamming import join, near_pairs
from stages.images.decode import decode
from stages.images.hashes import hash_image

DISTANCES = {"phash": (2, 4, 6, 8, 10, 12), "pdq": (16, 24, 31, 36, 40)}
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


def hashes_of(photos: list[Path]) -> Iterator[tuple[str, int, bytes, bytes, int]]:
    """(edit, '' for the photo itself; number of the photo; phash; pdq; the lower of the two qualities)."""
    for number, path in enumerate(photos):
        pixels = decode(path.read_bytes())
        copies = {"": pixels} | {name: edit(pixels) for name, edit in edits(number).items()}
        for name, picture in copies.items():
            found = hash_image(picture, pdq=True)
            assert found.pdq is not None and found.pdq_quality is not None
            yield name, number, found.phash, found.pdq, min(found.quality, found.pdq_quality)


def measure(photos: list[Path]) -> dict[str, object]:
    rows = list(hashes_of(photos))
    names = list(dict.fromkeys(name for name, *_ in rows))
    edit, number, quality = np.array([names.index(row[0]) for row in rows]), np.array([row[1] for row in rows]), np.array([row[4] for row in rows])
    report: dict[str, object] = {"photos": len(photos), "photos_below_quality": int(((quality < LEAST_QUALITY) & (edit == 0)).sum())}
    for place, (kind, steps) in zip((2, 3), DISTANCES.items(), strict=True):
        bits = np.frombuffer(b"".join(row[place] for row in rows), np.uint8).reshape(len(rows), -1)
        report[kind] = {str(step): _at(bits, edit, number, quality, names, step) for step in steps}
    return report


def _at(bits: np.ndarray, edit: np.ndarray, number: np.ndarray, quality: np.ndarray, names: list[str], distance: int) -> dict[str, object]:
    own = bits[np.flatnonzero(edit == 0)][number]
    off = np.bitwise_count(bits ^ own).sum(1)
    good = (quality >= LEAST_QUALITY) & (quality[np.flatnonzero(edit == 0)][number] >= LEAST_QUALITY)
    recall = {name: round(float(((off <= distance) & good)[edit == nth].mean()), 4) for nth, name in enumerate(names) if nth}
    right, wrong, photos = _joined(bits[quality >= LEAST_QUALITY], number[quality >= LEAST_QUALITY], edit[quality >= LEAST_QUALITY] == 0, distance)
    return {"recall": recall, "pairs_of_one_photo": right, "pairs_of_two": wrong, "precision": round(right / max(1, right + wrong), 6), "photo_pairs": photos}


def _joined(bits: np.ndarray, number: np.ndarray, plain: np.ndarray, distance: int) -> tuple[int, int, int]:
    """Pairs within the distance: of one photo, of two, and of two photos without edits."""
    values, which = np.unique(bits, axis=0, return_inverse=True)
    right = wrong = photos = 0
    order = np.argsort(which, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(which))[:-1])
    pairs = join(list(near_pairs(values, distance)))
    for left, to in [*zip(pairs.left.tolist(), pairs.right.tolist(), strict=True), *((same, same) for same in range(len(values)))]:
        a, b = members[left], members[to]
        equal = number[a][:, None] == number[b][None]
        both = plain[a][:, None] & plain[b][None] & ~equal
        half = 2 if left == to else 1
        right += (int(equal.sum()) - (len(a) if left == to else 0)) // half
        wrong += int((~equal).sum()) // half
        photos += int(both.sum()) // half
    return right, wrong, photos


def table(report: dict[str, object]) -> str:
    """Markdown: a row per edit, a column per hash and distance."""
    columns = [(kind, str(step)) for kind, steps in DISTANCES.items() for step in steps]
    lines = ["| Edit | " + " | ".join(f"{kind} {step}" for kind, step in columns) + " |", "|---|" + "---|" * len(columns)]
    first = report[columns[0][0]][columns[0][1]]["recall"]  # type: ignore[index]
    for name in first:
        lines.append(f"| {name} | " + " | ".join(f"{report[kind][step]['recall'][name]:.3f}" for kind, step in columns) + " |")  # type: ignore[index]
    for name, key in (("precision", "precision"), ("wrong pairs", "pairs_of_two"), ("of them photo with photo", "photo_pairs")):
        lines.append(f"| {name} | " + " | ".join(str(report[kind][step][key]) for kind, step in columns) + " |")  # type: ignore[index]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos (Flickr8k)")
    parser.add_argument("--count", type=int, default=5000, help="the first so many by name")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    photos = sorted(options.photos.glob("*.jpg"))[: options.count]
    if not photos:
        raise SystemExit(f"{options.photos}: no *.jpg in this folder")
    report = measure(photos)
    print(f"{report['photos']} photos, {report['photos_below_quality']} below quality {LEAST_QUALITY}\n\n{table(report)}")
    if options.out:
        options.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
