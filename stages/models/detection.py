"""What a model that finds phrases in images must offer, and what all of them need: boxes checked against the image, IoU, suppression."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

DEFAULT_MAX_PIXELS = 960 * 960


@dataclass(frozen=True, slots=True)
class Detection:
    """One found object: left, top, right, bottom as shares of width and height (0 to 1), the phrase it was found for, 0 to 1."""

    box: tuple[float, float, float, float]
    phrase: str
    score: float


class Detector(Protocol):
    """A model of kind owlv2 or crop_detector. `digest` names weights, precision and all settings that make its answers."""

    digest: str

    def describe(self) -> dict[str, Any]:
        """digest, note ('' or what must stand beside its boxes), max_pixels (images are scaled down to it, aspect ratio kept)."""
        ...

    def detect(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One call for a batch: `images`, N arrays uint8 [H, W, 3] in RGB, and `phrases`, N lists of texts, to `detections`: N lists
        of Detection, best first, each box with its most confident phrase. Further keys of the request come back as they are.
        """
        ...


def checked_box(box: Sequence[float] | np.ndarray) -> tuple[float, float, float, float] | None:
    """A box (left, top, right, bottom; shares of the sides) clipped to the image; None where nothing of it is left, or it is no box."""
    if not all(map(math.isfinite, box)):
        return None
    left, top, right, bottom = (min(1.0, max(0.0, float(value))) for value in box)
    return (left, top, right, bottom) if left < right and top < bottom else None


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [N, 4] and [M, 4] (left, top, right, bottom), float64 [N, M]; 0 where both are empty."""
    first, second = np.asarray(boxes, np.float64)[:, None], np.asarray(others, np.float64)[None]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    shared = np.clip(sides, 0, None).prod(axis=-1)
    union = _areas(first) + _areas(second) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(axis=-1)


def suppressed(boxes: np.ndarray, scores: np.ndarray, most_iou: float) -> list[int]:
    """Non-maximum suppression: places of the boxes [N, 4] that stay, best first; one that overlaps a better one by more goes."""
    overlaps = iou(boxes, boxes)
    kept: list[int] = []
    for at in np.argsort(-scores, kind="stable").tolist():
        if all(overlaps[at, other] <= most_iou for other in kept):
            kept.append(at)
    return kept
