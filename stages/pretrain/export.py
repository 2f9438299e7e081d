"""Trained towers in the layout that open_clip loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from stages.models.open_clip_loader import Preprocess, weights_digest
from stages.pretrain.checkpoint import whole_folder

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"


def export_clip(clip: nn.Module, model_cfg: dict[str, Any], preprocess_cfg: dict[str, Any], folder: Path) -> str:
    """Write `folder` so that `open_clip.create_model_and_transforms('local-dir:<folder>')` loads it.

    The folder appears complete or not at all; an earlier one is replaced. Returns the digest of the weights.
    Raises TrainError where the disk refuses.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in clip.state_dict().items()}
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    with whole_folder(folder) as beside:
        save_file(state, beside / WEIGHTS_NAME)
        (beside / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return weights_digest(state)


def preprocess_dict(preprocess: Preprocess) -> dict[str, Any]:
    """The preprocessing as open_clip's `preprocess_cfg`; it takes the size from the vision tower."""
    return {
        "mean": list(preprocess.mean), "std": list(preprocess.std), "interpolation": preprocess.interpolation,
        "resize_mode": preprocess.resize_mode,
    }
