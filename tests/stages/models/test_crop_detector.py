"""The detector of sliding windows: what it finds on rendered scenes that no model saw, and the geometry under it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.errors import RecipeError
from pipeline.models import model_identity
from stages.demo.captions import true_phrases
from stages.demo.scenes import draw_scene, object_boxes, render
from stages.demo.streams import seed_for
from stages.models.detection import checked_box, iou, suppressed

pytest.importorskip("torch")
pytest.importorskip("open_clip")

from stages.models import crop_detector  # noqa: E402

SPEC: dict[str, Any] = {"kind": "crop_detector", "weights": "bundled:rendered_clip", "device": "cpu"}


def test_recall_on_scenes_of_held_out_seeds() -> None:
    """8 scenes of the stream 'heldout' (see docs/regions.md for 200): at least half of the objects at IoU 0.5, each box inside the image."""
    detector = crop_detector.load(SPEC)
    scenes = [draw_scene(seed_for("heldout", 4_000_000 + at)) for at in range(8)]
    phrases = [[f"a {phrase}" for phrase in true_phrases(scene)] for scene in scenes]
    answer = detector.detect({"images": [render(scene) for scene in scenes], "phrases": phrases, "more": 1})
    found = total = 0
    for scene, asked, detections in zip(scenes, phrases, answer["detections"], strict=True):
        assert {one.phrase for one in detections} <= set(asked)
        assert all(checked_box(one.box) == one.box and 0 <= one.score <= 1 for one in detections)
        for phrase, truth in zip(asked, object_boxes(scene), strict=True):
            total += 1
            found += any(one.phrase == phrase and one.score > 0.1 and iou(np.array([one.box]), truth[None])[0, 0] >= 0.5 for one in detections)
    assert answer["more"] == 1 and total >= 15
    assert found / total >= 0.5


def test_without_a_phrase_nothing_is_found_and_no_model_runs() -> None:
    detector = crop_detector.load({**SPEC, "sides": [0.5], "step": 1})
    assert detector.detect({"images": [np.zeros((20, 30, 3), np.uint8)], "phrases": [[]]})["detections"] == [[]]


def test_windows_cover_the_image_and_lie_no_farther_apart_than_the_step() -> None:
    windows = crop_detector.sliding_windows((0.25, 1.0), 0.4)
    assert windows.min() == 0 and windows.max() == pytest.approx(1) and (windows[-1] == [0, 0, 1, 1]).all()
    small = windows[np.isclose(windows[:, 2] - windows[:, 0], 0.25)]
    assert np.diff(np.unique(small[:, 0].round(9))).max() <= 0.25 * 0.4 + 1e-9 and len(small) == 9 * 9


def test_overlap_and_suppression_of_a_worked_example() -> None:
    boxes = np.array([[0, 0, 0.4, 0.4], [0.1, 0, 0.5, 0.4], [0.6, 0.6, 1, 1], [0.5, 0.5, 0.5, 0.9]])
    overlaps = iou(boxes, boxes)
    assert overlaps[0, 1] == pytest.approx(0.12 / 0.2) and overlaps[0, 2] == 0 and overlaps[3, 3] == 0 and overlaps[2, 2] == pytest.approx(1)
    assert suppressed(boxes[:3], np.array([0.5, 0.9, 0.2]), 0.5) == [1, 2]
    assert suppressed(boxes[:3], np.array([0.5, 0.9, 0.2]), 0.7) == [1, 0, 2]


@pytest.mark.parametrize(
    ("box", "kept"),
    [((0.2, 0.1, 0.5, 0.9), (0.2, 0.1, 0.5, 0.9)), ((-0.5, 0.1, 0.5, 1.5), (0.0, 0.1, 0.5, 1.0)), ((0.5, 0.1, 0.5, 0.9), None), ((0.6, 0.1, 0.5, 0.9), None),
     ((1.1, 0.1, 1.5, 0.9), None), ((float("nan"), 0, 1, 1), None), ((0, 0, float("inf"), 1), None)],
)  # fmt: skip
def test_a_box_is_clipped_to_the_image_or_is_none(box: tuple[float, ...], kept: tuple[float, ...] | None) -> None:
    assert checked_box(box) == kept


def test_settings_of_the_search_belong_to_the_models_identity() -> None:
    assert model_identity(SPEC) == model_identity({**SPEC, "threads": 2})
    assert model_identity(SPEC) != model_identity({**SPEC, "sides": [0.25, 0.5]})
    assert crop_detector.availability(SPEC)[0] == "ok"
    with pytest.raises(RecipeError, match="sides"):
        crop_detector.load({**SPEC, "sides": [0, 2]})
    with pytest.raises(RecipeError, match="step of a crop_detector"):
        crop_detector.load({**SPEC, "step": 0})
    with pytest.raises(RecipeError, match="no option 'sidez'"):
        crop_detector.load({**SPEC, "sidez": [0.5]})
