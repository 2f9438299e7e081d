"""Model kind `crop_detector`: finds phrases with a CLIP alone, by windows that slide over the image. Needs no detector weights.

In a recipe: `models: {finder: {kind: crop_detector, weights: bundled:rendered_clip}}`. `weights`, `name`, `device`, `precision`, `batch_size`
and `threads` are those of kind open_clip. Further keys: `sides` (sides of the square windows as shares of the image), `step` (how far
apart windows lie, as a share of their side), `per_phrase` (boxes of one phrase), and the other numbers of `Search`. Their defaults were
chosen on 60 rendered scenes of the stream 'train_eval' with the bundled CLIP, where `score` is about the share of boxes that are right
when half of the phrases are of things that are not there; for another CLIP measure them anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import cv2
import numpy as np

from pipeline.digests import digest_of
from pipeline.errors import RecipeError
from stages.models import open_clip
from stages.models.detection import Detection, checked_box, iou, suppressed

METHOD = "detect"
_VERSION = 1  # of what turns embeddings into boxes


@dataclass(frozen=True)
class Search:
    """How windows are laid and judged; lengths are shares of the image's side, `centre` and `width` those of the score's logistic curve."""

    sides: tuple[float, ...] = (0.18, 0.25, 0.33)
    step: float = 0.4
    whole_weight: float = 0.5
    erased_weight: float = 1.0
    area_price: float = 1.5
    softness: float = 0.03
    most_iou: float = 0.3
    per_phrase: int = 2
    centre: float = 0.7
    width: float = 0.1


_SEARCH_KEYS = frozenset(field.name for field in fields(Search))


def identity(spec: Mapping[str, Any]) -> str:
    """The CLIP's identity and the version of the search, without loading anything. Raises RecipeError as open_clip does."""
    search, clip = _split(spec)
    return digest_of(open_clip.identity(clip), _VERSION, asdict(search))


def load(spec: Mapping[str, Any]) -> CropDetector:
    """The detector of a spec. Raises Fatal where its CLIP cannot be loaded, RecipeError where the spec is wrong."""
    search, clip = _split(spec)
    return CropDetector(open_clip.load(clip), search)


def availability(spec: Mapping[str, Any]) -> tuple[str, str, str]:
    """Whether the CLIP's weights are at hand, as `open_clip.availability`."""
    return open_clip.availability(_split(spec)[1])


def _split(spec: Mapping[str, Any]) -> tuple[Search, dict[str, Any]]:
    """The search's settings and the spec of the CLIP. Raises RecipeError for a setting that makes no sense."""
    own = {key: tuple(value) if isinstance(value, list) else value for key, value in spec.items() if key in _SEARCH_KEYS}
    search = Search(**own)
    if not isinstance(search.sides, tuple) or not search.sides or not all(isinstance(side, int | float) and 0 < side <= 1 for side in search.sides):
        raise RecipeError(f"models: crop_detector needs `sides` as a list of shares above 0 and up to 1, such as [0.25, 0.5], found {spec['sides']!r}")
    for key in ("step", "width"):
        if not isinstance(value := getattr(search, key), int | float) or value <= 0:
            raise RecipeError(f"models: {key} of a crop_detector must be a number above 0, found {value!r}")
    return search, {key: value for key, value in spec.items() if key not in _SEARCH_KEYS} | {"kind": "open_clip"}


def sliding_windows(sides: Sequence[float], step: float) -> np.ndarray:
    """Square windows of each side that cover the image evenly, at most `step` of a side apart: float64 [N, 4], shares of the image."""
    found = []
    for side in sides:
        starts = np.linspace(0, 1 - side, math.ceil((1 - side) / (side * step) - 1e-9) + 1)
        found += [(left, top, left + side, top + side) for top in starts for left in starts]
    return np.array(found)


class CropDetector:
    """Two views of a window tell whether a window holds a phrase: the image with all but the window painted over, and with the window painted over.

    evidence = cos(window alone, phrase) - erased_weight * cos(window erased, phrase) + whole_weight * cos(whole, phrase) - area_price * area.
    The first term says that the phrase is inside, the second that it is nowhere else, the third that the image has it at all; the price
    keeps boxes tight. All views keep the image's scale, for a CLIP that was never shown magnified parts.
    """

    def __init__(self, clip: open_clip.OpenClipModel, search: Search | None = None):
        self.clip = clip
        self.search = search or Search()
        self.digest = f"crop_detector-{digest_of(clip.digest, _VERSION, asdict(self.search))}"
        self._windows = sliding_windows(self.search.sides, self.search.step)
        self._overlaps = iou(self._windows, self._windows)

    def describe(self) -> dict[str, Any]:
        """Facts that stages need before the first call."""
        note = f"boxes come from sliding windows scored by a CLIP; {self.clip.note}".removesuffix("; ")
        return {"digest": self.digest, "note": note, "max_pixels": self.clip.image_size**2 * 16}

    def detect(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """See `Detector.detect`."""
        rest = {key: value for key, value in request.items() if key not in ("images", "phrases")}
        found = [self._in_image(image, list(phrases)) for image, phrases in zip(request["images"], request["phrases"], strict=True)]
        return rest | {"detections": found}

    def _in_image(self, image: np.ndarray, phrases: list[str]) -> list[Detection]:
        if not phrases:
            return []
        size = self.clip.image_size
        evidence = self._evidence(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), self.clip.embed_texts(phrases))
        boxes, values, owners = self._peaks(evidence)
        scores = 1 / (1 + np.exp(-(values - self.search.centre) / self.search.width))
        found = []
        for at in suppressed(boxes, scores, self.search.most_iou):
            box = checked_box(boxes[at])
            if box is not None:
                found.append(Detection(box, phrases[owners[at]], round(float(scores[at]), 4)))
        return found

    def _evidence(self, pixels: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Evidence of each window for each phrase, float64 [windows, phrases]."""
        fill = np.median(pixels.reshape(-1, 3), axis=0).astype(np.uint8)
        alone = np.empty((len(self._windows), *pixels.shape), np.uint8)
        alone[:] = fill
        erased = np.repeat(pixels[None], len(self._windows), axis=0)
        for at, (left, top, right, bottom) in enumerate(np.rint(self._windows * len(pixels)).astype(int).tolist()):
            alone[at, top:bottom, left:right] = pixels[top:bottom, left:right]
            erased[at, top:bottom, left:right] = fill
        inside = self.clip.embed_images(alone) @ texts.T
        outside = self.clip.embed_images(erased) @ texts.T
        whole = (self.clip.embed_images(pixels[None]) @ texts.T)[0]
        areas = (self._windows[:, 2] - self._windows[:, 0]) * (self._windows[:, 3] - self._windows[:, 1])
        search = self.search
        return inside + search.whole_weight * whole - search.erased_weight * outside - search.area_price * areas[:, None]

    def _peaks(self, evidence: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best places of each phrase: boxes [P, 4], their evidence [P], phrase [P].

        Refinement: a box is the mean of the best window and of those that overlap it, weighted by how near their evidence comes; the
        single best window is too coarse, and noisy.
        """
        boxes, values, owners = [], [], []
        for phrase, column in enumerate(evidence.T):
            free = np.ones(len(column), bool)
            while free.any() and owners.count(phrase) < self.search.per_phrase:
                best = int(np.argmax(np.where(free, column, -np.inf)))
                weights = np.exp((column - column[best]) / self.search.softness) * free * (self._overlaps[best] >= 0.2)
                boxes.append(weights @ self._windows / weights.sum())
                values.append(column[best])
                owners.append(phrase)
                free &= self._overlaps[best] <= 0.1
        return np.array(boxes), np.array(values), np.array(owners)
