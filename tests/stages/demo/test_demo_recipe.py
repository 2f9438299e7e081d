"""The demo's recipe: which engine it asks for, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import load_recipe
from stages.demo import main
from stages.models import transformers, vllm


def test_a_demo_without_vllm_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [f"input.table={tmp_path / 'urls.parquet'}"]
    given, other = load_recipe("demo", settings), load_recipe("demo", [*settings, "models.mllm.kind=transformers"])
    monkeypatch.setattr(main.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="models.mllm.kind=transformers"):
        main.check_engine(given)
    main.check_engine(other)


def test_both_engines_take_the_same_model_of_the_recipe(tmp_path: Path) -> None:
    spec = load_recipe("demo", [f"input.table={tmp_path / 'urls.parquet'}"]).models["mllm"]
    assert spec["dtype"] == "float32"  # by itself vLLM would take bfloat16, and answers would differ
    assert vllm.identity(spec) == transformers.identity({**spec, "kind": "transformers"})
