"""Fixtures of the trainer's tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from stages.pretrain.config import TrainConfig
from stages.pretrain.objectives.base import TINY_CLIP

_spec = importlib.util.spec_from_file_location("pretrain_test_shards", Path(__file__).with_name("shards.py"))
shards = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(shards)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def write_dataset():
    """The function that writes a small dataset folder (see shards.py)."""
    return shards.write_dataset


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 samples in two shards. Read-only: tests that damage a dataset write their own."""
    return shards.write_dataset(tmp_path_factory.mktemp("dataset") / "dataset")


@pytest.fixture
def tiny_config(dataset_dir: Path):
    """A factory of configs for a training of a few steps on CPU."""
    def make(**changes: object) -> TrainConfig:
        settings = {"dataset": str(dataset_dir), "model": TINY_CLIP, "steps": 6, "batch_size": 8, "warmup": 2,
                    "threads": 1, "device": "cpu", "log_every": 1, "checkpoint_every": 2, "keep": 10, "workers": 2}
        return TrainConfig(**{**settings, **changes})
    return make
