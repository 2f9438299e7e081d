"""The CLIP that comes with the package, and how it is made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from stages.demo.streams import STREAMS, seed_for
from stages.models.open_clip_loader import BUNDLED, load_clip
from stages.pretrain.config import TrainConfig
from stages.pretrain.evaluate import embed_texts, evaluate_retrieval
from stages.pretrain.rendered import (
    LARGEST_BUNDLE,
    NOTE,
    RECIPE,
    heldout_samples,
    main,
    matched_auc,
    rendered_samples,
    scene_captions,
    used_tokens,
    write_bundle,
)

FOLDER = Path(__file__).parents[2] / "stages" / "demo" / "weights" / BUNDLED


@pytest.fixture(scope="module")
def bundled():
    return load_clip(BUNDLED)


def test_bundle_is_small_and_says_what_it_is_for(bundled) -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= LARGEST_BUNDLE
    assert bundled.note == NOTE and "rendered world" in bundled.note


def test_bundle_is_the_one_its_evaluation_measured(bundled) -> None:
    evaluation = json.loads((FOLDER / "evaluation.json").read_text())
    assert evaluation["heldout"]["weights_digest"] == bundled.digest
    assert evaluation["recipe"] == yaml.safe_load(RECIPE.read_text())
    assert evaluation["heldout"]["images"] == 1000


def test_bundle_tells_captions_of_unseen_scenes_apart(bundled) -> None:
    samples = heldout_samples(200)
    assert matched_auc(bundled, samples) >= 0.97
    found = evaluate_retrieval(bundled, samples)
    assert found["text_to_image_recall@10"] > 0.5  # chance is 0.05
    evaluation = json.loads((FOLDER / "evaluation.json").read_text())["heldout"]
    assert evaluation["auc"] >= 0.97


def test_texts_with_tokens_the_world_never_uses_still_embed(bundled) -> None:
    found = embed_texts(bundled, ["quantum chromodynamics lecture", "ein roter Kreis", "赤い丸", ""])
    assert np.isfinite(found.numpy()).all() and found.norm(dim=1).numpy() == pytest.approx(1.0, abs=1e-5)


def test_training_scenes_are_never_those_of_the_demo() -> None:
    recipe = yaml.safe_load(RECIPE.read_text())
    trained = range(seed_for("train", 0), seed_for("train", recipe["scenes"] - 1) + 1)
    for stream in set(STREAMS) - {"train"}:
        assert seed_for(stream, 0) not in trained
        assert not trained.start <= seed_for(stream, 10**9) <= trained.stop
    assert TrainConfig(**recipe["train"]).init is None


def test_captions_of_a_scene_are_repeatable_and_varied() -> None:
    first = scene_captions("train", 5, 8)
    assert first == scene_captions("train", 5, 8) and len(set(first)) > 1
    assert first != scene_captions("train", 6, 8)


def test_recipe_runs_from_scenes_to_a_bundle_that_loads(tmp_path: Path) -> None:
    recipe = {
        "scenes": 48, "captions": 2, "eval_scenes": 20,
        "train": {
            "model": {
                "embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 1, "patch_size": 16, "width": 16,
                                                "head_width": 8},
                "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
            },
            "steps": 3, "batch_size": 16, "threads": 1, "device": "cpu",
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["--out", str(tmp_path / "out"), "--recipe", str(tmp_path / "recipe.yaml")]) == 0
    evaluation = json.loads((tmp_path / "out/bundle/evaluation.json").read_text())
    clip = load_clip(str(tmp_path / "out/bundle"))
    assert evaluation["heldout"]["weights_digest"] == clip.digest
    assert (evaluation["steps"], evaluation["train_eval"]["images"]) == (3, 20)
    trained = load_clip(str(tmp_path / "out/export"))
    samples = rendered_samples("train", 48, 2, 32)
    texts = [text for i in range(48) for text in samples.texts(i)]
    # what the world says keeps its own rows: only the rounding to half precision is left
    assert np.abs(embed_texts(clip, texts).numpy() - embed_texts(trained, texts).numpy()).max() < 5e-3
    assert set(clip.tokenizer(texts).unique().tolist()) <= set(used_tokens(samples, trained))


def test_bundle_above_the_limit_is_refused(bundled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.pretrain.rendered.LARGEST_BUNDLE", 1000)
    with pytest.raises(ValueError, match="choose smaller towers"):
        write_bundle(bundled, heldout_samples(2), tmp_path)
