"""Thumbnails laid over each other: crops, frames and texts fit, other pictures do not, and both measures are those of plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from stages.demo.scenes import draw_scene, render
from stages.images import registration
from stages.images.hashes import hash_image
from stages.images.registration import THUMB_BYTES, VIEW, laid_over

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


def match_scores(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return laid_over(one, other, np.ones(len(one), bool))[0]


def differences(one: np.ndarray, other: np.ndarray, written: bool = False) -> np.ndarray:
    return laid_over(one, other, np.full(len(one), written))[1]


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
    written = np.arange(len(left)) % 2 == 0
    whole = laid_over(left, right, written)
    monkeypatch.setattr(registration, "CHUNK", 7)
    assert all(np.array_equal(*both) for both in zip(whole, laid_over(left, right, written), strict=True)) and len(match_scores(left[:0], right[:0])) == 0


def marked(*shapes: Callable[[np.ndarray], object]) -> np.ndarray:
    """A plain evening sky with some shapes."""
    sky = np.linspace(90, 190, 128, dtype=np.uint8)[:, None, None] + np.zeros((128, 128, 3), np.uint8)
    for shape in shapes:
        shape(sky)
    return sky


def circle(sky: np.ndarray) -> None:
    cv2.circle(sky, (60, 70), 14, (250, 230, 40), -1, cv2.LINE_AA)


def hole(sky: np.ndarray) -> None:
    cv2.circle(sky, (60, 70), 6, (150, 150, 150), -1, cv2.LINE_AA)


def line(sky: np.ndarray) -> None:
    cv2.putText(sky, "www.example", (0, 120), cv2.FONT_HERSHEY_SIMPLEX, 0.68, (10, 10, 10), 2, cv2.LINE_AA)


def star(sky: np.ndarray) -> None:
    cv2.drawMarker(sky, (64, 112), (240, 40, 40), cv2.MARKER_STAR, 16, 3)


def test_a_small_object_parts_two_plain_pictures_and_encoding_cutting_and_shrinking_do_not() -> None:
    own = marked(circle)
    copies = [cv2.imdecode(cv2.imencode(".jpg", own, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_COLOR), own[3:118, 9:124], cv2.resize(own, (64, 64))]
    pictures = thumbs([own, *copies, marked(circle, hole), marked()])
    found = differences(pictures[:1].repeat(5, axis=0), pictures[1:])
    assert found[:3].max() < 6 and found[3:].min() > 20
    assert np.array_equal(found[3:], differences(pictures[4:], pictures[:1].repeat(2, axis=0)))


def test_a_line_of_text_is_left_out_of_pairs_that_may_bear_one_and_an_object_as_high_is_not() -> None:
    pictures = thumbs([marked(circle), marked(circle, line), marked(circle, star), marked(hole, line)])
    own = pictures[:1].repeat(3, axis=0)
    assert differences(own, pictures[1:]).min() > 11
    text, object_, behind_text = differences(own, pictures[1:], written=True)
    assert text < 8 and object_ > 15 and behind_text > 15


def test_the_difference_is_that_of_loops_in_float64() -> None:
    draw = np.random.default_rng(6)
    cut = draw.normal(0, 20, (3, 4, VIEW, VIEW)).astype(np.float32)  # plane, pair
    view = (cut + draw.normal(0, 1, cut.shape)).astype(np.float32)
    view[0, 1:3, 13:16] += 30  # as wide as the picture, of one that may be written on and one that may not
    view[0, 3, 13:16, 4:8] += 30  # narrow
    view[2, 0, 20:, 20:] += 15  # another colour in one corner
    found = registration._difference(list(zip(cut, view, strict=True)), np.array([True, True, False, True]))
    for nth in range(4):
        squares = sum(weight * (cut[p, nth].astype(np.float64) - view[p, nth]) ** 2 for p, weight in enumerate((1, 2, 2)))
        blocks = {(y, x): sum(squares[y + i, x + j] for i in range(4) for j in range(4)) / 16 for y in range(0, 21, 2) for x in range(0, 21, 2)}
        wanted = [max(blocks.values())]
        for top in range(21):
            heights = [sum(squares[top + i, x] for i in range(4)) / 4 for x in range(24)]
            if nth != 2 and sum(heights) ** 2 / sum(height**2 for height in heights) >= 0.45 * 24:
                wanted.append(max(value for (y, _), value in blocks.items() if y + 4 <= top or y >= top + 4))
        assert found[nth] == pytest.approx(math.sqrt(min(wanted)), rel=1e-3)
    assert found[1] < 12 < 20 < found[2] and found[3] > 20


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
