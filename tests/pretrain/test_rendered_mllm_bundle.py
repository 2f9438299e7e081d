"""The MLLM that comes with the package: what its evaluation says holds for the weights that are there, in both engines."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run
from stages.demo.captions import caption_for
from stages.demo.claims import named_objects
from stages.demo.image_bytes import encode
from stages.demo.scenes import render
from stages.models.open_clip_loader import weights_digest
from stages.models.weights import BUNDLED_FOLDER
from stages.pretrain import rendered_mllm
from stages.pretrain.rendered_mllm_eval import Answerer, compare_engines, dense_captions, eval_scene, injections, matching

FOLDER = BUNDLED_FOLDER / "rendered_mllm"


@pytest.fixture(scope="module")
def stated() -> dict:
    return json.loads((FOLDER / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer(FOLDER)


def test_the_evaluation_is_that_of_these_weights_and_of_the_recipe_that_is_committed(stated: dict) -> None:
    assert stated["recipe"] == yaml.safe_load(rendered_mllm.RECIPE.read_text())
    weights = load_file(FOLDER / "model.safetensors")
    assert stated["weights_sha256"] == hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert stated["parameters"] == sum(tensor.numel() for tensor in weights.values()) and 3e6 < stated["parameters"] < 6e6
    assert stated["bundle_bytes"] < 25e6 and stated["weights_digest"]
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 25e6 and weights_digest(weights)


def test_scores_tell_true_texts_from_others_as_the_evaluation_says(stated: dict, answerer: Answerer) -> None:
    """40 pairs: an AUC of 0.95 scatters by about 0.025 on so few, one of 0.85 by about 0.045; two of them are allowed."""
    found = matching(answerer, 40)
    assert found["answers_that_are_numbers"] > 0.98
    assert found["auc_another_scene_expected"] > stated["matching"]["auc_another_scene_expected"] - 0.05
    assert found["auc_attribute_changed_expected"] > stated["matching"]["auc_attribute_changed_expected"] - 0.1


def test_dense_captions_name_the_objects_that_are_there_as_the_evaluation_says(stated: dict, answerer: Answerer) -> None:
    found = dense_captions(answerer, 16)
    for name, figures in found.items():
        for share in ("precision", "recall"):
            assert figures[share] > stated["dense_captions"][name][share] - 0.1, (name, share)


def test_an_instruction_in_a_text_hardly_moves_its_score(stated: dict, answerer: Answerer) -> None:
    found = injections(answerer, 24)
    for aspect in ("image_text_matching", "object_detail_fulfillment", "caption_text_quality", "semantic_understanding"):
        assert found[aspect]["expected"] < stated["injections"][aspect]["expected"] + 5


def test_stages_of_a_run_ask_it_as_it_was_trained(tmp_path: Path) -> None:
    """16 scenes as image files, half of them with another scene's caption: the recipe's own stages, engine and prompts."""
    scenes = [eval_scene(70_000 + number) for number in range(16)]
    for number, scene in enumerate(scenes):
        (tmp_path / f"{number:02}.png").write_bytes(encode(render(scene, 128), "png"))
        (tmp_path / f"{number:02}.txt").write_text(caption_for(scene if number % 2 else eval_scene(80_000 + number)))
    stages = [
        "read_images", {"mllm_score": {"aspects": ["image_text_matching"], "expectation": True, "thresholds": {"image_text_matching": 50}}},
        {"caption_dense": {"use": "caption", "format": "dense"}},
    ]  # fmt: skip
    spec = {"kind": "transformers", "weights": "bundled:rendered_mllm", "max_model_len": 1024}
    given = {"name": "bundled", "input": {"kind": "image_folder", "folder": str(tmp_path)}, "models": {"mllm": spec}, "stages": stages}
    view = run(build_recipe(given), tmp_path / "out", RunOptions(executor="local")).view.view(0)
    scores = view.masked(view.chain.find_column("image_text_matching")).to_pylist()
    assert sum(score > 50 for score in scores[1::2]) >= 7 and sum(score < 50 for score in scores[::2]) >= 7, scores
    captions = view.masked(view.chain.find_column("caption_dense.text")).to_pylist()
    named = [named_objects(text) == {(item.color, item.shape) for item in scene.objects} for text, scene in zip(captions, scenes, strict=True) if text]
    assert len(named) >= 7 and sum(named) >= 0.7 * len(named), captions


@pytest.mark.slow
def test_vllm_and_transformers_give_the_same_greedy_answers() -> None:
    pytest.importorskip("vllm")
    found = compare_engines(FOLDER, 200)
    assert found["equal"] >= 0.97, found
