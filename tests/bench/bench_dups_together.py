"""Hashes, embeddings and thumbnails asked together, on scenes of the rendered world: recall per edit and precision of rules that `dedup` can be given.

    bench_dups_together.py [--scenes 300] [--first 30000000] [--svg FILE]

Each scene gets nine copies. All pairs of pictures are looked at; a pair is right where both show one scene. Embeddings are those of the bundled CLIP.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from bench_near_dup_recall import _embedded, edits

from stages.demo.scenes import draw_scene, render
from stages.images.hashes import hash_image
from stages.images.registration import laid_over
from stages.models import open_clip
from stages.vectors.blocks import unit

EDITS = ("jpeg 50", "resize 0.5", "crop 2%", "crop 5%", "crop 10%", "border 3%", "border 8%", "text 5%", "text 10%")
LEAST_QUALITY = 50
FIRST = "PDQ 24, or difference 11 with match 0.9 or with cosine 0.95 and pHash 24"
RULE = "PDQ 24 with difference 20, or difference 9 with match 0.9 or with cosine 0.95 and pHash 24"
LOOKED_BITS, LOOKED_COSINE = 80, 0.85  # pairs whose thumbnails are compared


@dataclass
class Seen:
    """What two pictures have in common: [N, N] bits of each hash ('w': of the whole picture), cosines, and whether both have enough to see."""

    scene: np.ndarray
    edit: np.ndarray
    phash: np.ndarray
    pdq: np.ndarray
    wphash: np.ndarray
    wpdq: np.ndarray
    cosine: np.ndarray
    wgood: np.ndarray
    match: np.ndarray  # of thumbnails; 0 for pairs that are not looked at
    difference: np.ndarray  # of thumbnails, grey levels; infinite for pairs that are not looked at


def seen(scenes: int, first: int) -> Seen:
    model = open_clip.load({"kind": "open_clip", "weights": "bundled:rendered_clip", "device": "cpu", "batch_size": 10})
    found: dict[str, list] = {name: [] for name in ("scene", "edit", "phash", "pdq", "wphash", "wpdq", "quality", "vector", "thumb")}
    for scene in range(scenes):
        pixels, made = render(draw_scene(first + scene)), edits(scene)
        copies = [pixels, *(made[name](pixels) for name in EDITS)]
        for nth, (copy, vector) in enumerate(zip(copies, _embedded(copies, model), strict=True)):
            trimmed, whole = hash_image(copy, trimmed=True, thumbnail=True), hash_image(copy)
            row = (scene, nth, trimmed.phash, trimmed.pdq, whole.phash, whole.pdq, whole.quality, vector, trimmed.thumbnail)
            for name, value in zip(found, row, strict=True):
                found[name].append(value)
    vectors, good = unit(np.stack(found["vector"])), np.array(found["quality"]) >= LEAST_QUALITY
    bits = {name: _bits(found[name]) for name in ("phash", "pdq", "wphash", "wpdq")}
    cosine = vectors @ vectors.T
    thumbs = np.frombuffer(b"".join(found["thumb"]), np.uint8).reshape(len(vectors), -1)
    match, difference = _compared(thumbs, bits["pdq"] <= LOOKED_BITS, cosine >= LOOKED_COSINE)
    return Seen(np.array(found["scene"]), np.array(found["edit"]), **bits, cosine=cosine, wgood=good[:, None] & good[None], match=match, difference=difference)


def _compared(thumbs: np.ndarray, hashed: np.ndarray, embedded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matches and differences [N, N] of the pairs that either search found (bool [N, N])."""
    left, right = np.nonzero(np.triu(hashed | embedded, 1))
    match, difference = np.zeros(hashed.shape, np.float32), np.full(hashed.shape, np.inf, np.float32)
    for found, measured in zip((match, difference), laid_over(thumbs[left], thumbs[right], hashed[left, right]), strict=True):
        found[left, right] = found[right, left] = np.round(measured, 4)
    return match, difference


def _bits(hashes: list[bytes]) -> np.ndarray:
    words = np.frombuffer(b"".join(hashes), np.uint64).reshape(len(hashes), -1)
    return sum(np.bitwise_count(word[:, None] ^ word[None]).astype(np.uint16) for word in words.T)  # type: ignore[return-value]


def rules(s: Seen) -> dict[str, np.ndarray]:
    alike, near, same = ((s.cosine >= least) & (s.phash <= 24) for least in (0.93, 0.95, 0.97))
    first, agree = s.difference <= 11, s.difference <= 9
    return {
        "pHash 2, whole": (s.wphash <= 2) & s.wgood,
        "pHash 2, all": s.phash <= 2,
        "PDQ 31, whole": (s.wpdq <= 31) & s.wgood,
        "PDQ 31, all": s.pdq <= 31,
        "PDQ 60, all": s.pdq <= 60,
        "pHash 2, or cosine 0.93 with pHash 24": (s.phash <= 2) | alike,
        "PDQ 60, or cosine 0.93 with pHash 24": (s.pdq <= 60) | alike,
        "PDQ 40, or PDQ 60 with cosine 0.6, or cosine 0.93 with pHash 24": (s.pdq <= 40) | ((s.pdq <= 60) & (s.cosine >= 0.6)) | alike,
        "PDQ 40, or PDQ 70 with cosine 0.6, or cosine 0.93 with pHash 24": (s.pdq <= 40) | ((s.pdq <= 70) & (s.cosine >= 0.6)) | alike,
        "PDQ 24, or match 0.94": (s.pdq <= 24) | (s.match >= 0.94),
        "PDQ 24, or cosine 0.97 with pHash 24": (s.pdq <= 24) | same,
        "PDQ 24, or cosine 0.97 with pHash 24, or match 0.94": (s.pdq <= 24) | same | (s.match >= 0.94),
        "PDQ 24, or difference 11": (s.pdq <= 24) | first,
        "PDQ 24, or difference 11 with match 0.9": (s.pdq <= 24) | (first & (s.match >= 0.9)),
        FIRST: (s.pdq <= 24) | (first & (near | (s.match >= 0.9))),
        RULE: ((s.pdq <= 24) & (s.difference <= 20)) | (agree & (near | (s.match >= 0.9))),
    }


DRAWN = (
    ("PDQ 31, whole", "#9aa7b4"), ("PDQ 31, all", "#4a90c2"), ("PDQ 60, or cosine 0.93 with pHash 24", "#d9772b"),
    (FIRST, "#3c8d4f"),
)  # fmt: skip


def drawing(recalls: dict[str, list[float]]) -> str:
    """Bars of recall per edit, one colour per rule."""
    bars = []
    for at, name in enumerate(EDITS):
        top = 62 + 55 * at
        bars.append(f'<text x="92" y="{top + 26}" text-anchor="end">{name}</text>')
        for nth, (rule, colour) in enumerate(DRAWN):
            share = recalls[rule][at]
            bars.append(f'<rect x="100" y="{top + 11 * nth}" width="{420 * share:.1f}" height="9" fill="{colour}"/>')
            bars.append(f'<text x="{106 + 420 * share:.1f}" y="{top + 8 + 11 * nth}" font-size="9">{share:.2f}</text>')
    names = [f'<rect x="{x}" y="{y}" width="10" height="10" fill="{colour}"/><text x="{x + 15}" y="{y + 9}">{rule}</text>'
             for (x, y), (rule, colour) in zip(((20, 14), (140, 14), (240, 14), (20, 34)), DRAWN, strict=True)]  # fmt: skip
    height = 66 + 55 * len(EDITS)
    font = 'font-family="sans-serif" font-size="12" fill="#222"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="570" height="{height}" viewBox="0 0 570 {height}" {font}>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *names, *bars, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--first", type=int, default=30_000_000, help="seed of the first scene")
    parser.add_argument("--svg", type=Path, help="also draw the recall of four rules")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    s = seen(options.scenes, options.first)
    upper, own = np.triu_indices(len(s.scene), 1), np.flatnonzero(s.edit == 0)
    same = (s.scene[:, None] == s.scene[None])[upper]
    print("| Rule | precision | " + " | ".join(EDITS) + " |\n|---|---|" + "---|" * len(EDITS))
    recalls, twos = {}, s.scene[:, None] * len(s.scene) + s.scene[None]
    for name, joined in rules(s).items():
        right, wrong = int((joined[upper] & same).sum()), int((joined[upper] & ~same).sum())
        recalls[name] = recall = [float(joined[np.flatnonzero(s.edit == nth + 1), own].mean()) for nth in range(len(EDITS))]
        scenes = len(np.unique(twos[upper][joined[upper] & ~same]))
        shares = " | ".join(f"{share:.3f}" for share in recall)
        print(f"| {name} | {right / max(1, right + wrong):.4f} | {shares} | wrong: {wrong}, of {scenes} pairs of scenes")
    if options.svg:
        options.svg.write_text(drawing(recalls))


if __name__ == "__main__":
    main()
