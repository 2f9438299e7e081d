"""Thumbnails laid over each other: crops, frames and texts fit, other pictures do not, and the score is that of plain loops."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from stages.demo.scenes import draw_scene, render
from stages.images import registration
from stages.images.hashes import hash_image
from stages.images.registration import THUMB_BYTES, VIEW, match_scores

SCENES = 12


def scene(number: int) -> np.ndarray:
    return render(draw_scene(610_000_000 + number, 6))


def written_on(pixels: np.ndarray) -> np.ndarray:
    return cv2.putText(pixels.copy(), "www.example.com", (6, 118), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)


EDITS = {
    "cropped": lambda pixels: pixels[3:118, 9:124],
    "framed": lambda pixels: cv2.copyMakeBorder(pixels, 6, 6, 6, 6, cv2.BORDER_CONSTANT, value=(255, 255, 255)),
    "written on": written_on,
    "half the size": lambda pixels: cv2.resize(pixels, (64, 64), interpolation=cv2.INTER_AREA),
}


def thumbs(pictures: list[np.ndarray]) -> np.ndarray:
    raw = [hash_image(np.ascontiguousarray(pixels), pdq=False, trimmed=True, thumbnail=True).thumbnail for pixels in pictures]
    return np.frombuffer(b"".join(raw), np.uint8).reshape(-1, THUMB_BYTES)


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    return thumbs([scene(number) for number in range(SCENES)])


@pytest.mark.parametrize("edit", EDITS)
def test_copies_fit_in_either_order_and_other_pictures_do_not(plain: np.ndarray, edit: str) -> None:
    copies = thumbs([EDITS[edit](scene(number)) for number in range(SCENES)])
    found = match_scores(plain, copies)
    assert found.min() > 0.8 and np.array_equal(found, match_scores(copies, plain))
    assert match_scores(plain, np.roll(copies, 1, axis=0)).max() < 0.6


def test_what_two_pictures_have_in_common_by_their_text_alone_does_not_count() -> None:
    backgrounds = [np.full((128, 128, 3), 120, np.uint8) for _ in range(2)]
    cv2.circle(backgrounds[0], (40, 40), 18, (250, 250, 250), -1)
    cv2.rectangle(backgrounds[1], (70, 30), (110, 60), (10, 10, 10), -1)
    same, other = thumbs([written_on(pixels) for pixels in backgrounds]), thumbs(backgrounds)
    assert match_scores(same[:1], same[1:])[0] < 0.7
    assert match_scores(same, other).min() > 0.8


def test_nothing_to_see_is_no_match_and_scores_do_not_depend_on_what_is_measured_with_them(plain: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = np.full((2, THUMB_BYTES), 90, np.uint8)
    assert match_scores(grey[:1], grey[1:] + np.uint8(1))[0] < 0.1
    left, right = np.repeat(plain, SCENES, axis=0), np.tile(plain, (SCENES, 1))
    whole = match_scores(left, right)
    monkeypatch.setattr(registration, "CHUNK", 7)
    assert np.array_equal(whole, match_scores(left, right)) and len(match_scores(left[:0], right[:0])) == 0


def test_the_score_is_that_of_loops_in_float64() -> None:
    draw = np.random.default_rng(5)
    cut = draw.normal(0, 20, (3, 3, VIEW, VIEW)).astype(np.float32)  # plane, pair
    view = (cut + draw.normal(0, 12, cut.shape)).astype(np.float32)
    view[0, 1, 12:18] = 90  # a spoilt band
    view[0, 2, :3] = view[0, 2, -3:] = view[0, 2, :, :3] = view[0, 2, :, -3:] = -70  # a frame
    view[1:, 0] *= -1  # other colours
    found = registration._agreement(list(zip(cut, view, strict=True)))
    for nth in range(3):
        assert found[nth] == pytest.approx(by_loops(cut[:, nth].astype(np.float64), view[:, nth].astype(np.float64)), abs=2e-4)


def by_loops(cut: np.ndarray, view: np.ndarray) -> float:
    everything = {(y, x) for y in range(24) for x in range(24)}
    bands = [{(y, x) for y, x in everything if not top <= y < top + 7} for top in range(18)]
    return max(score_by_loops(cut, view, kept) for kept in (everything, *bands, {(y, x) for y, x in everything if 3 <= y < 21 and 3 <= x < 21}))


def score_by_loops(cut: np.ndarray, view: np.ndarray, kept: set[tuple[int, int]]) -> float:
    fits, sums = [], [0.0, 0.0, 0.0]
    for top in range(0, 17, 4):
        for left in range(0, 17, 4):
            places = [(y, x) for y in range(top, top + 8) for x in range(left, left + 8) if (y, x) in kept]
            if len(places) < 16:
                continue
            parts = [2.0 * len(places)] * 3  # a variance of two grey levels
            for weight, one, other in zip((1, 2, 2), cut, view, strict=True):
                a, b = ([picture[place] for place in places] for picture in (one, other))
                mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
                products = [((p - mean_a) * (q - mean_b), (p - mean_a) ** 2, (q - mean_b) ** 2) for p, q in zip(a, b, strict=True)]
                parts = [part + weight * sum(column) for part, column in zip(parts, zip(*products, strict=True), strict=True)]
            fits.append(parts[0] / math.sqrt(parts[1] * parts[2]))
            sums = [total + part for total, part in zip(sums, parts, strict=True)]
    return (sums[0] / math.sqrt(sums[1] * sums[2]) + sum(sorted(fits)[:6]) / 6) / 2
