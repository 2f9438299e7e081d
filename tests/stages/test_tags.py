"""tags: SIC-CADS' scores against planted embeddings and a worked example, and real crops of rendered scenes with the bundled CLIP."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import Fatal, RecipeError
from pipeline.models import LocalModel
from pipeline.stage import Context
from schemas.outcome import Failure
from stages import clip_rows, vocabularies
from stages.demo.captions import true_phrases
from stages.demo.scenes import draw_scene, render
from stages.demo.streams import seed_for
from stages.tags import Tags, fused, overlapping_crops, tag_scores

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from stages.models import open_clip as kind  # noqa: E402


class Bytes:
    reads = 0

    def __init__(self, pixels: np.ndarray):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        self.data = out.getvalue()

    def read(self) -> bytes:
        Bytes.reads += 1
        return self.data


class PlantedEmbedder:
    """Pixels of value 10, 30, 50 ... show concept 0, 1, 2 ...; an image's embedding is how many show each, a text's the concept of its number."""

    digest = "planted"

    def describe(self) -> dict[str, Any]:
        return {"image_size": 60, "resize_mode": "squash", "interpolation": "bilinear", "embed_dim": 12, "logit_scale": 1.0}

    def embed(self, request: Mapping[str, Any]) -> dict[str, Any]:
        images = np.array([self._seen(image) for image in request["images"]]).reshape(-1, 12)
        texts = np.array([np.eye(12)[int(text.rsplit(" ", 1)[1])] for text in request["texts"]]).reshape(-1, 12)
        return {**request, "image": images.astype(np.float32), "text": texts.astype(np.float32)}

    def _seen(self, image: np.ndarray) -> np.ndarray:
        shown = image[..., 0].ravel()
        shares = np.bincount(shown[shown % 20 == 10] // 20, minlength=12)[:12].astype(float)
        return shares / np.linalg.norm(shares)


@pytest.fixture
def concepts(tmp_path: Path) -> str:
    path = tmp_path / "concepts.txt"
    path.write_text("# twelve concepts\n" + "\n".join(f"concept {at}" for at in range(12)))
    return str(path)


@pytest.fixture(scope="module")
def bundled() -> kind.OpenClipModel:
    return kind.load({"kind": "open_clip", "weights": "bundled:rendered_clip", "device": "cpu", "batch_size": 8})


def through(model: Any, rows: list[dict[str, Any]], **params: Any) -> list[Any]:
    stage, handle = Tags(Tags.Params(**params)), LocalModel(model)
    ctx = Context("tags", 0, model=handle)
    rows = [{"sample_id": bytes(16), **row} for row in rows]
    return stage.finish(rows, handle.submit(stage.model_method, stage.prepare(rows, ctx)).result(), ctx)


def names(result: Any, count: int = 3) -> list[str]:
    return [tag["name"] for tag in result["tags"][:count]]


def test_sic_cads_acceptance_a_concept_planted_in_one_quadrant_needs_the_crops(concepts: str) -> None:
    """SIC-CADS (46): four concepts fill five blocks of the image each, but no crop by itself; a fifth fills three blocks of one corner."""
    blocks = np.full((6, 6), 12)
    for row in range(6):
        for column in range(6):
            if row > 3 or column > 3:
                blocks[row, column] = (row + 2 * column) % 4
    blocks[0, 0] = blocks[0, 1] = blocks[1, 0] = 7
    assert np.bincount(blocks.ravel())[[0, 1, 2, 3, 7]].tolist() == [5, 5, 5, 5, 3]
    pixels = np.repeat(np.kron(np.minimum(blocks * 20 + 10, 255), np.ones((15, 15)))[..., None], 3, axis=2).astype(np.uint8)
    rows = [{"image": Bytes(pixels)}]
    params: dict[str, Any] = {"vocabulary": concepts, "top_k": 12, "min_score": 0}
    assert "concept 7" in names(through(PlantedEmbedder(), rows, **params)[0])
    assert "concept 7" not in names(through(PlantedEmbedder(), rows, **params, multi_crop=False)[0])


def test_sic_cads_acceptance_standardised_scores_do_not_feel_an_images_offset() -> None:
    cosines = np.random.default_rng(0).normal(size=(5, 30))
    assert np.allclose(tag_scores(cosines), tag_scores(0.2 + 0.05 * cosines))
    assert np.ptp(tag_scores(cosines)) > 0.5


def test_sic_cads_acceptance_fusion_at_weight_0_and_1_is_a_single_branch() -> None:
    own, other = np.random.default_rng(0).random((2, 20))
    other[3] = 0.0
    assert (fused(own, other, 0) == own).all() and (fused(own, other, 1) == other).all()
    assert fused(np.array([0.25]), np.array([0.64]), 0.5)[0] == pytest.approx(0.4)


def test_scores_of_a_worked_example() -> None:
    """Whole: 1, 2, 3; crops at most 3, 2, 1: all means are 2, so no class stands out. With crops 5, 2, 1: means 3, 2, 2."""
    whole = [1.0, 2.0, 3.0]
    assert tag_scores(np.array([whole, [3, 0, 1], [0, 2, 0], [0, 0, 0], [0, 0, 0]])).tolist() == [0.5, 0.5, 0.5]
    scores = tag_scores(np.array([whole, [5, 0, 1], [0, 2, 0], [0, 0, 0], [0, 0, 0]]))
    assert scores == pytest.approx([1 / (1 + np.exp(-(2**0.5))), *[1 / (1 + np.exp(0.5**0.5))] * 2])


def test_crops_are_the_four_overlapping_corners() -> None:
    pixels = np.zeros((90, 60, 3), np.uint8)
    pixels[:28, :18] = 200  # lies in the first crop only
    pixels[30:60, 20:40, 1] = 100  # the middle lies in all
    crops = overlapping_crops(pixels, 32, "bilinear")
    assert [crop.shape for crop in crops] == [(32, 32, 3)] * 4
    assert [int(crop[..., 0].max()) for crop in crops] == [200, 0, 0, 0] and all(crop[..., 1].max() == 100 for crop in crops[1:])


def test_crops_find_objects_of_rendered_scenes_that_the_whole_image_hides(bundled: kind.OpenClipModel) -> None:
    """Scenes of five objects and 88 classes: the planted quadrant of the first scene, and more true tags over all scenes than without crops."""
    found = {True: 0, False: 0}
    scenes = [scene for at in range(160) if len((scene := draw_scene(seed_for("heldout", 6_000_000 + at))).objects) == 5][:12]
    rows = [{"image": Bytes(render(scene))} for scene in scenes]
    for crops in found:
        results = through(bundled, rows, vocabulary="rendered_world", top_k=5, multi_crop=crops)
        pairs = zip(scenes, results, strict=True)
        found[crops] = sum(len(set(true_phrases(scene)) & set(names(result, 5))) for scene, result in pairs)
    assert found[True] > found[False]


def test_stored_embeddings_give_the_same_tags_without_an_image_being_read(bundled: kind.OpenClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_rows, "_compared", set())
    pixels = [render(draw_scene(seed)) for seed in range(5)]
    params: dict[str, Any] = {"vocabulary": "rendered_world", "multi_crop": False}
    rows = [{"image": Bytes(one)} for one in pixels]
    plain = through(bundled, rows, **params)
    whole = bundled.embed_images(np.stack([np.asarray(Image.fromarray(one).resize((64, 64), Image.Resampling.BICUBIC)) for one in pixels]))
    stored = [{**row, "clip_score.image_emb": vector.astype(np.float16)} for row, vector in zip(rows, whole, strict=True)]
    Bytes.reads = 0
    kept = through(bundled, stored, **params, embeddings="clip_score")
    assert Bytes.reads == 1, "one image is embedded again, to see that the stored embeddings are this model's"
    for one, other in zip(plain, kept, strict=True):
        assert names(one) == names(other)
        assert [tag["score"] for tag in one["tags"]] == pytest.approx([tag["score"] for tag in other["tags"]], abs=2e-3)
    through(bundled, stored, **params, embeddings="clip_score")
    assert Bytes.reads == 1


def test_embeddings_of_another_model_are_refused(bundled: kind.OpenClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_rows, "_compared", set())
    image = Bytes(render(draw_scene(0)))
    for width, told in ((128, "was not made by model 'clip'"), (64, "has 64 numbers, embeddings of model 'clip' have 128")):
        vector = np.random.default_rng(0).normal(size=width)
        row = {"image": image, "clip_score.image_emb": (vector / np.linalg.norm(vector)).astype(np.float16)}
        with pytest.raises(Fatal, match=told):
            through(bundled, [row], vocabulary="rendered_world", embeddings="clip_score")


def test_another_stages_tags_are_joined_by_name(concepts: str) -> None:
    pixels = np.full((60, 60, 3), 255, np.uint8)
    pixels[:, :20, 0], pixels[:, 20:30, 0] = 3 * 20 + 10, 5 * 20 + 10
    params: dict[str, Any] = {"vocabulary": concepts, "top_k": 12, "min_score": 0.0, "fuse_with": "other"}
    row = {"image": Bytes(pixels), "other.tags": [{"name": "concept 5", "score": 0.9}, {"name": "concept 3", "score": 0.01}]}
    assert names(through(PlantedEmbedder(), [row], **params, fuse_weight=0.0)[0], 1) == ["concept 3"]
    assert through(PlantedEmbedder(), [row], **params, fuse_weight=1.0)[0]["tags"][0] == {"name": "concept 5", "score": 0.9}
    assert Tags(Tags.Params(**params)).reads[-1] == "other.tags"


def test_a_damaged_image_costs_its_row_and_thresholds_hold(bundled: kind.OpenClipModel) -> None:
    bad = Bytes(render(draw_scene(0)))
    bad.data = bad.data[:200]
    results = through(bundled, [{"image": bad}, {"image": Bytes(render(draw_scene(1)))}, {"image": None}], vocabulary="rendered_world", top_k=3, min_score=0.7)
    assert isinstance(results[0], Failure) and isinstance(results[2], Failure)
    assert 1 <= len(results[1]["tags"]) <= 3 and all(tag["score"] >= 0.7 for tag in results[1]["tags"])


def test_vocabularies_come_from_a_file_or_a_built_in_list(tmp_path: Path) -> None:
    assert len(vocabularies.load("common_objects", "x")) == 80 and len(vocabularies.load("rendered_world", "x")) == 88
    with pytest.raises(RecipeError, match=r"no vocabulary 'common_object' \(did you mean 'common_objects'\?\)"):
        vocabularies.load("common_object", "stages.tags.vocabulary")
    (tmp_path / "one.txt").write_text("# only\none\n")
    with pytest.raises(RecipeError, match="has 1 classes"):
        vocabularies.load(str(tmp_path / "one.txt"), "x")
    with pytest.raises(RecipeError, match="cannot be read"):
        vocabularies.load(str(tmp_path / "none.txt"), "x")
