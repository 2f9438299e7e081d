"""OWLv2 through transformers: a model made from a config, compared with transformers' own processor and post-processing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import Fatal, RecipeError
from pipeline.models import model_identity
from stages.models import owlv2
from stages.models.detection import Detection

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

from tiny_owlv2 import save_tiny_owlv2  # noqa: E402

PHRASES = [["a red star", "two cats"], ["the sea", "a very long phrase of many words"], ["a heart", "a dog"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_owlv2(tmp_path_factory.mktemp("owlv2"))


def images() -> list[np.ndarray]:
    """A wide, a tall and a square one, smaller and larger than the model's input."""
    draw = np.random.default_rng(0)
    return [draw.integers(0, 255, (*shape, 3), dtype=np.uint8) for shape in ((40, 90), (100, 55), (64, 64))]


def own_results(folder: Path, pictures: list[np.ndarray], phrases: list[list[str]], threshold: float, outputs: Any = None) -> list[dict[str, Any]]:
    """What transformers itself gives, boxes in pixels; of the model's `outputs` where they are given."""
    processor = transformers.Owlv2Processor.from_pretrained(folder)
    if outputs is None:
        model = transformers.Owlv2ForObjectDetection.from_pretrained(folder).eval()
        inputs = processor(images=pictures, text=phrases, return_tensors="pt", truncation=True)
        with torch.inference_mode():
            outputs = model(**inputs)
    return processor.post_process_grounded_object_detection(
        outputs, threshold=threshold, target_sizes=[picture.shape[:2] for picture in pictures], text_labels=phrases
    )


def as_shares(result: dict[str, Any], picture: np.ndarray) -> list[Detection]:
    height, width = picture.shape[:2]
    found = []
    for score, phrase, (left, top, right, bottom) in zip(result["scores"].tolist(), result["text_labels"], result["boxes"].tolist(), strict=True):
        box = tuple(min(1.0, max(0.0, value)) for value in (left / width, top / height, right / width, bottom / height))
        if box[0] < box[2] and box[1] < box[3]:
            found.append(Detection(box, phrase, score))  # type: ignore[arg-type]
    return sorted(found, key=lambda one: -one.score)


@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_boxes_scores_and_phrases_are_exactly_those_of_transformers_own_post_processing(folder: Path, threshold: float) -> None:
    detector = owlv2.load({"kind": "owlv2", "weights": str(folder), "device": "cpu", "threshold": threshold})
    passes: list[Any] = []
    detector.model.register_forward_hook(lambda module, given, outputs: passes.append(outputs))
    found = detector.detect({"images": images(), "phrases": PHRASES, "failures": {7: "kept"}})
    assert len(passes) == 1
    theirs = own_results(folder, images(), PHRASES, threshold, passes[0])
    afresh = own_results(folder, images(), PHRASES, threshold)  # from the pictures on: two passes may differ in a float32's last bit
    assert found["failures"] == {7: "kept"}
    assert sum(map(len, found["detections"])) > 10
    for ours, result, again, picture, asked in zip(found["detections"], theirs, afresh, images(), PHRASES, strict=True):
        assert ours == as_shares(result, picture)
        scores = [one.score for one in as_shares(again, picture)]
        assert np.allclose([one.score for one in ours], scores, rtol=0, atol=1e-6)
        assert {one.phrase for one in ours} <= set(asked)
        assert all(one.score > threshold for one in ours)
    if threshold == 0.5:
        assert sum(map(len, found["detections"])) < 3 * 64, "the threshold takes some away"


def test_padding_of_an_image_is_no_place_for_a_box(folder: Path) -> None:
    """The wide image is padded below: boxes that lie there wholly are left out, and the others end at the image's edge."""
    detector = owlv2.load({"kind": "owlv2", "weights": str(folder), "device": "cpu"})
    found = detector.detect({"images": images()[:1], "phrases": PHRASES[:1]})["detections"][0]
    raw = own_results(folder, images()[:1], PHRASES[:1], 0.1)[0]["boxes"]
    assert (raw[:, 1] >= 40).any() and len(found) == int((raw[:, 1] < 40).sum())
    assert all(0 <= low < high <= 1 for one in found for low, high in ((one.box[0], one.box[2]), (one.box[1], one.box[3])))


def test_a_phrase_is_not_touched_by_what_shares_its_batch(folder: Path) -> None:
    """Images with one and with four phrases in one call, one without any: as each alone, and no filling phrase takes a box."""
    detector = owlv2.load({"kind": "owlv2", "weights": str(folder), "device": "cpu", "batch_size": 2})
    phrases = [["a red star"], [], ["a heart", "a dog", "the sea", "two cats"]]
    together = detector.detect({"images": images(), "phrases": phrases})["detections"]
    assert together[1] == []
    for at in (0, 2):
        alone = detector.detect({"images": images()[at : at + 1], "phrases": phrases[at : at + 1]})["detections"][0]
        assert [one.phrase for one in together[at]] == [one.phrase for one in alone] and len(alone) > 5
        assert np.allclose([one.box for one in together[at]], [one.box for one in alone], atol=1e-5)
        assert np.allclose([one.score for one in together[at]], [one.score for one in alone], atol=1e-5)


def test_each_box_takes_its_most_confident_phrase(folder: Path) -> None:
    """A box found for several phrases stands once, with the higher of the scores that the phrases have alone."""
    detector = owlv2.load({"kind": "owlv2", "weights": str(folder), "device": "cpu", "threshold": 0.0})
    picture = images()[2:]
    single = [{one.box: one.score for one in detector.detect({"images": picture, "phrases": [[text]]})["detections"][0]} for text in PHRASES[0]]
    both = detector.detect({"images": picture, "phrases": [PHRASES[0]]})["detections"][0]
    assert len({one.box for one in both}) == len(both) == len(single[0])
    for one in both:
        scores = [found[one.box] for found in single]
        assert one.phrase == PHRASES[0][int(np.argmax(scores))] and one.score == pytest.approx(max(scores), abs=1e-5)


def test_the_models_table_names_a_folder_and_knows_its_options(folder: Path, tmp_path: Path) -> None:
    spec = {"kind": "owlv2", "weights": str(folder)}
    assert model_identity(spec) == model_identity({**spec, "device": "cpu", "threads": 2})
    assert model_identity(spec) != model_identity({**spec, "threshold": 0.2})
    assert owlv2.availability(spec)[0] == "ok"
    with pytest.raises(RecipeError, match=r"no option 'treshold' \(did you mean 'threshold'\?\)"):
        owlv2.load({**spec, "treshold": 0.2})
    with pytest.raises(RecipeError, match="threshold of an owlv2"):
        owlv2.load({**spec, "threshold": 1.5})
    with pytest.raises(RecipeError, match="no config.json"):
        owlv2.load({"kind": "owlv2", "weights": str(tmp_path)})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Fatal, match="could not be loaded"):
        owlv2.load({"kind": "owlv2", "weights": str(tmp_path)})
