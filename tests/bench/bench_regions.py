"""How well the detector of sliding windows finds objects of the rendered world: recall and precision at IoU 0.5, with the bundled CLIP.

Scenes of the stream 'heldout', which no weights and no setting were chosen on. Three ways of asking: the true phrases ('a red star'); these and
three of things that are not there; the noun phrases of a caption, as the stage `regions` asks. An object is found by a box above the score with its
phrase (for captions: whose last noun is its shape); a box is right where it finds an object. Prints one JSON line with the counts.
Run: python tests/bench/bench_regions.py [--scenes 200] [--first 3000000]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stages.demo.captions import SHAPE_WORDS, caption_for, true_phrases  # noqa: E402
from stages.demo.scenes import COLORS, SHAPES, Scene, draw_scene, object_boxes, render  # noqa: E402
from stages.demo.streams import seed_for  # noqa: E402
from stages.models import crop_detector  # noqa: E402
from stages.models.detection import Detection, iou  # noqa: E402
from stages.text.phrases import noun_phrases  # noqa: E402

SCORES = (0.1, 0.3, 0.5)
_ALL = [f"{color} {shape}" for color in COLORS for shape in SHAPES]


def names_object(phrase: str, scene: Scene, at: int, exact: bool) -> bool:
    """Whether a phrase means an object: 'a <colour> <shape>', or for phrases of captions a word for its shape at the end."""
    item = scene.objects[at]
    return phrase == f"a {item.color} {item.shape}" if exact else phrase.endswith(SHAPE_WORDS[item.shape])


def count(scene: Scene, truth: np.ndarray, found: Sequence[Detection], exact: bool) -> list[int]:
    """Objects, objects found, boxes, boxes that are right."""
    hits = np.zeros((len(found), len(truth)), bool)
    for row, one in enumerate(found):
        overlaps = iou(np.array([one.box]), truth)[0]
        hits[row] = [overlaps[at] >= 0.5 and names_object(one.phrase, scene, at, exact) for at in range(len(truth))]
    return [len(truth), int(hits.any(axis=0).sum()), len(found), int(hits.any(axis=1).sum())]


def measure(scenes: int, first: int) -> dict[str, Any]:
    detector = crop_detector.load({"kind": "crop_detector", "weights": "bundled:rendered_clip", "device": "cpu"})
    draw, totals = np.random.default_rng(0), {(way, score): np.zeros(4, int) for way in ("true", "absent", "caption") for score in SCORES}
    started = time.process_time()
    for at in range(scenes):
        scene = draw_scene(seed_for("heldout", first + at))
        true = [f"a {phrase}" for phrase in true_phrases(scene)]
        absent = [f"a {phrase}" for phrase in draw.permutation(_ALL) if f"a {phrase}" not in true][:3]
        ways = {"true": true, "absent": true + absent, "caption": noun_phrases(caption_for(scene))}
        image = render(scene)
        for way, phrases in ways.items():
            found = detector.detect({"images": [image], "phrases": [phrases]})["detections"][0]
            for score in SCORES:
                totals[way, score] += count(scene, object_boxes(scene), [one for one in found if one.score > score], way != "caption")
    seconds = (time.process_time() - started) / scenes / 3
    found_by = {
        f"{way}_above_{score}": {"objects": n, "recall": round(hit / n, 3), "boxes": boxes, "precision": round(right / max(boxes, 1), 3)}
        for (way, score), (n, hit, boxes, right) in ((key, total.tolist()) for key, total in totals.items())
    }
    return {"bench": "regions", "scenes": scenes, "first": first, "cpu_seconds_per_image": round(seconds, 2), **found_by}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--first", type=int, default=3_000_000)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.scenes, arguments.first)))


if __name__ == "__main__":
    main()
