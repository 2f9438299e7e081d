"""Hashes and embeddings asked together, on scenes of the rendered world: recall per edit and precision of rules that `dedup` can be given.

    bench_dups_together.py [--scenes 150]

Each scene gets nine copies. All pairs of pictures are looked at; a pair is right where both show one scene. Embeddings are those of the bundled CLIP.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import cv2
import numpy as np
from bench_near_dup_recall import _embedded, edits

from stages.demo.scenes import draw_scene, render
from stages.images.hashes import hash_image
from stages.models import open_clip
from stages.vectors.blocks import unit

EDITS = ("jpeg 50", "resize 0.5", "crop 2%", "crop 5%", "crop 10%", "border 3%", "border 8%", "text 5%", "text 10%")
LEAST_QUALITY = 50


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


def seen(scenes: int) -> Seen:
    model = open_clip.load({"kind": "open_clip", "weights": "bundled:rendered_clip", "device": "cpu", "batch_size": 10})
    found: dict[str, list] = {name: [] for name in ("scene", "edit", "phash", "pdq", "wphash", "wpdq", "quality", "vector")}
    for scene in range(scenes):
        pixels, made = render(draw_scene(10**7 + scene)), edits(scene)
        copies = [pixels, *(made[name](pixels) for name in EDITS)]
        for nth, (copy, vector) in enumerate(zip(copies, _embedded(copies, model), strict=True)):
            trimmed, whole = hash_image(copy, trimmed=True), hash_image(copy)
            row = (scene, nth, trimmed.phash, trimmed.pdq, whole.phash, whole.pdq, whole.quality, vector)
            for name, value in zip(found, row, strict=True):
                found[name].append(value)
    vectors, good = unit(np.stack(found["vector"])), np.array(found["quality"]) >= LEAST_QUALITY
    bits = {name: _bits(found[name]) for name in ("phash", "pdq", "wphash", "wpdq")}
    return Seen(np.array(found["scene"]), np.array(found["edit"]), **bits, cosine=vectors @ vectors.T, wgood=good[:, None] & good[None])


def _bits(hashes: list[bytes]) -> np.ndarray:
    words = np.frombuffer(b"".join(hashes), np.uint64).reshape(len(hashes), -1)
    return sum(np.bitwise_count(word[:, None] ^ word[None]).astype(np.uint16) for word in words.T)  # type: ignore[return-value]


def rules(s: Seen) -> dict[str, np.ndarray]:
    alike = (s.cosine >= 0.93) & (s.phash <= 24)
    return {
        "pHash 2, whole": (s.wphash <= 2) & s.wgood,
        "pHash 2, all": s.phash <= 2,
        "PDQ 31, whole": (s.wpdq <= 31) & s.wgood,
        "PDQ 31, all": s.pdq <= 31,
        "PDQ 60, all": s.pdq <= 60,
        "pHash 2, or cosine 0.93 with pHash 24": (s.phash <= 2) | alike,
        "PDQ 60, or cosine 0.93 with pHash 24": (s.pdq <= 60) | alike,
        "PDQ 40, or PDQ 60 with cosine 0.6, or cosine 0.93 with pHash 24": (s.pdq <= 40) | ((s.pdq <= 60) & (s.cosine >= 0.6)) | alike,
        "the same with PDQ 70": (s.pdq <= 40) | ((s.pdq <= 70) & (s.cosine >= 0.6)) | alike,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=150)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    s = seen(options.scenes)
    upper, own = np.triu_indices(len(s.scene), 1), np.flatnonzero(s.edit == 0)
    same = (s.scene[:, None] == s.scene[None])[upper]
    print("| Rule | precision | " + " | ".join(EDITS) + " |\n|---|---|" + "---|" * len(EDITS))
    for name, joined in rules(s).items():
        right, wrong = int((joined[upper] & same).sum()), int((joined[upper] & ~same).sum())
        recall = [joined[np.flatnonzero(s.edit == nth + 1), own].mean() for nth in range(len(EDITS))]
        print(f"| {name} | {right / max(1, right + wrong):.4f} | " + " | ".join(f"{share:.3f}" for share in recall) + " |")


if __name__ == "__main__":
    main()
