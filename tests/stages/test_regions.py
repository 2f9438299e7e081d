"""regions: queries by CLOC's rules, boxes above the threshold and inside the image, real detectors, and regions in the shards."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.chain import Chain, InputFacts
from pipeline.errors import Fatal, RecipeError
from pipeline.models import LocalModel
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run
from pipeline.stage import Context
from schemas.outcome import Failure, FailureCode
from stages.models.detection import Detection
from stages.regions import Regions
from stages.text.phrases import noun_phrases

sys.path.insert(0, str(Path(__file__).parent / "models"))

LONG = " and ".join(f"a {color} {shape}" for color in ("red", "green", "blue", "white", "black") for shape in ("star", "heart", "ring", "cross", "box"))


class Planned:
    """A detector with planned answers, for what no real one does on demand; keeps the phrases it was asked for."""

    digest = "planned"

    def __init__(self, *answers: tuple[tuple[float, ...], int, float]):
        self.answers = answers
        self.asked: list[list[str]] = []

    def describe(self) -> dict[str, Any]:
        return {"max_pixels": 64 * 64}

    def detect(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.asked = request["phrases"]
        self.shapes = [image.shape for image in request["images"]]
        found = [[Detection(box, phrases[at], score) for box, at, score in self.answers] for phrases in request["phrases"]]  # type: ignore[arg-type]
        return {**request, "detections": found}


class Bytes:
    def __init__(self, data: bytes):
        self.data = data

    def read(self) -> bytes:
        return self.data


def through(model: Any, rows: list[dict[str, Any]], **params: Any) -> list[Any]:
    stage, handle = Regions(Regions.Params(**params)), LocalModel(model)
    ctx = Context("regions", 0, model=handle)
    return stage.finish(rows, handle.submit(stage.model_method, stage.prepare(rows, ctx)).result(), ctx)


def test_cloc_acceptance_at_most_20_queries_and_only_boxes_above_a_tenth(jpeg: Callable[..., bytes]) -> None:
    """CLOC (11): 25 phrases become 20 queries; a score of 0.1 is out, 0.101 in. (The 30 golden captions: tests/stages/text/test_phrases.py.)"""
    box = (0.1, 0.2, 0.5, 0.6)
    model = Planned((box, 0, 0.1), (box, 1, 0.101), (box, 19, 0.9))
    result = through(model, [{"image": Bytes(jpeg()), "text": LONG}])[0]
    assert len(noun_phrases(LONG, 100)) == 25 and model.asked == [noun_phrases(LONG)] and len(model.asked[0]) == 20
    assert [(entry["phrase"], entry["score"]) for entry in result["regions"]] == [("a white box", 0.9), ("a red heart", 0.101)]
    assert result["region_phrases"] == model.asked[0]


def test_region_records_have_boxes_inside_the_image_of_positive_area_and_a_phrase(jpeg: Callable[..., bytes]) -> None:
    """RegionBLIP (28), first half: what lies outside goes, what sticks out is clipped."""
    model = Planned(((-0.2, 0.5, 0.4, 1.3), 0, 0.9), ((1.2, 0, 1.5, 1), 0, 0.8), ((0.3, 0.3, 0.3, 0.8), 0, 0.7), ((float("nan"), 0, 1, 1), 0, 0.6),
                    ((0.3, 0.50001, 0.6, 0.50002), 0, 0.5))  # fmt: skip
    found = through(model, [{"image": Bytes(jpeg()), "text": "a red star"}])[0]["regions"]
    assert found == [{"box": [0.0, 0.5, 0.4, 1.0], "phrase": "a red star", "score": 0.9}]


def test_images_reach_the_detector_within_its_pixel_cap_and_bad_ones_fail_alone(jpeg: Callable[..., bytes]) -> None:
    model = Planned(((0, 0, 1, 1), 0, 0.5))
    texts = ["a dog", "a dog", "a dog", "a cat"]
    images = [Bytes(jpeg(300, 100)), Bytes(b"no image"), None, Bytes(jpeg(20, 30))]
    results = through(model, [{"image": image, "text": text} for image, text in zip(images, texts, strict=True)])
    assert [shape[0] * shape[1] <= 64 * 64 for shape in model.shapes] == [True, True] and model.shapes[1] == (30, 20, 3)
    assert isinstance(results[1], Failure) and results[2] == Failure(FailureCode.BAD_ROW, "the row has no stored image")
    assert [results[at]["regions"][0]["phrase"] for at in (0, 3)] == ["a dog", "a cat"]


def test_a_row_without_a_text_has_no_regions_and_a_detector_may_not_invent_phrases(jpeg: Callable[..., bytes]) -> None:
    assert through(Planned(), [{"image": Bytes(jpeg()), "text": None}]) == [{"regions": [], "region_phrases": []}]

    class Inventive(Planned):
        def detect(self, request: Mapping[str, Any]) -> dict[str, Any]:
            return {**request, "detections": [[Detection((0, 0, 1, 1), "a unicorn", 0.9)]]}

    with pytest.raises(Fatal, match="'a unicorn', which was not asked for"):
        through(Inventive(), [{"image": Bytes(jpeg()), "text": "a dog"}])


def test_an_owlv2_made_from_a_config_serves_the_stage(jpeg: Callable[..., bytes], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tiny_owlv2 import save_tiny_owlv2

    from stages.models import owlv2

    model = owlv2.load({"kind": "owlv2", "weights": str(save_tiny_owlv2(tmp_path / "owl")), "device": "cpu"})
    result = through(model, [{"image": Bytes(jpeg(90, 40)), "text": "a red dog near the blue sea"}], max_boxes=2)[0]
    assert result["region_phrases"] == ["a red dog", "the blue sea"] and 1 <= len(result["regions"]) <= 2
    for region in result["regions"]:
        left, top, right, bottom = region["box"]
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1 and region["phrase"] in result["region_phrases"] and region["score"] > 0.1


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over four rendered scenes with captions: CLIP scores, regions, tags, attributes and shards, with the bundled CLIP."""
    pytest.importorskip("open_clip")
    from stages.demo.captions import caption_for
    from stages.demo.scenes import draw_scene, render
    from stages.demo.streams import seed_for

    folder = tmp_path_factory.mktemp("rendered")
    (folder / "in").mkdir()
    for at in range(4):
        scene = draw_scene(seed_for("heldout", 5_000_000 + at))
        out = io.BytesIO()
        Image.fromarray(render(scene)).save(out, "PNG")
        (folder / "in" / f"{at}.png").write_bytes(out.getvalue())
        (folder / "in" / f"{at}.txt").write_text(caption_for(scene))
    (folder / "in" / "4.png").write_bytes((folder / "in" / "3.png").read_bytes()[:-40] + b"damaged")
    (folder / "scheme.yaml").write_text(SCHEME)
    run(build_recipe(recipe(folder)), folder / "out", RunOptions(executor="local"))
    return folder / "out"


SCHEME = """
prompt: "a photo of a {} object"
threshold: 0.5
categories:
  - {name: colour, required: true, phrases: [red, orange, yellow, green, cyan, blue, purple, pink, brown, white, black]}
  - {name: texture, phrases: [striped, dotted, checkered], absent: plain}
templates: ["There is something {colour}[, it is {texture}]."]
"""


def recipe(folder: Path) -> dict[str, Any]:
    return {
        "input": {"kind": "image_folder", "folder": str(folder / "in")},
        "models": {
            "clip": {"kind": "open_clip", "weights": "bundled:rendered_clip", "device": "cpu"},
            "detector": {"kind": "crop_detector", "weights": "bundled:rendered_clip", "device": "cpu", "sides": [0.3], "step": 0.6},
        },
        "stages": [
            {"read_images": {}},
            {"clip_score": {"min": None}},
            {"regions": {}},
            {"tags": {"vocabulary": "rendered_world", "embeddings": "clip_score", "top_k": 5}},
            {"attributes": {"scheme": str(folder / "scheme.yaml"), "embeddings": "clip_score"}},
        ],
        "jobs": [{"write_shards": {}}],
    }


def test_shards_carry_regions_tags_and_attributes_in_their_json(finished: Path) -> None:
    records = []
    for tar in sorted((finished / "dataset" / "shards").glob("*.tar")):
        with tarfile.open(tar) as members:
            records += [json.load(members.extractfile(member)) for member in members if member.name.endswith(".json")]  # type: ignore[arg-type]
    values = pq.read_table(finished / "values" / "regions").to_pylist()
    assert len(records) >= 4 and sum(len(record["regions"]) for record in records) >= 4
    for record in records:
        for region in record["regions"]:
            left, top, right, bottom = region["box"]
            assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1 and region["score"] > 0.1
            assert region["phrase"] in record["region_phrases"] == noun_phrases(record["text"])
        assert 1 <= len(record["tags"]) <= 5 and record["tags"][0]["score"] >= record["tags"][-1]["score"] >= 0.5
        assert record["attributes.text"].startswith("There is something ")
        assert record["attributes.attributes"][0]["category"] == "colour"
    stored = sorted(np.round([edge for value in values for region in value["regions"] or () for edge in region["box"]], 4).tolist())
    assert stored == sorted(edge for record in records for region in record["regions"] for edge in region["box"])


def test_the_name_of_a_caption_stage_stands_for_its_text() -> None:
    assert Regions(Regions.Params(of="caption_dense")).reads == ("image", "caption_dense.text")
    assert Regions(Regions.Params()).reads == ("image", "text|alt_text")
    stages = [{"read_images": {}}, {"regions": {"of": "caption_dense"}}]
    models = {"detector": {"kind": "crop_detector", "weights": "bundled:rendered_clip"}}
    asked = build_recipe({"input": {"kind": "image_folder", "folder": "none"}, "stages": stages, "models": models})
    with pytest.raises(RecipeError, match=r"caption_dense.text"):
        Chain(asked, InputFacts("", {"path": pa.string(), "source_file": pa.string(), "source_offset": pa.int64(), "source_size": pa.int64()}))
