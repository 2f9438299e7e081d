"""Options of a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stages.pretrain.errors import TrainError

# A resumed run may change these; everything else decides what is learned and must stay.
FREE_ON_RESUME = frozenset(
    {"workers", "prefetch", "threads", "log_every", "checkpoint_every", "keep", "device", "dataset", "record_losses"}
)


class TrainConfig(BaseModel):
    """What is trained, on what, and for how long. Defaults follow open_clip's for ViT towers."""

    model_config = ConfigDict(extra="forbid")

    dataset: str = Field("", description="dataset folder (with manifest.json)")
    split: str = Field("train", description="split of the dataset")
    model: str | dict[str, Any] = Field(
        description="open_clip model name, path of a JSON config, or the config (embed_dim, vision_cfg, text_cfg)"
    )
    init: str | None = Field(None, description="weights to start from, as load_clip names them; null: random weights")
    objective: str = Field("clip", description="file name in stages/pretrain/objectives")
    objective_params: dict[str, Any] = Field(default_factory=dict, description="parameters of the objective")
    steps: int = Field(ge=1, description="optimizer steps in all")
    batch_size: int = Field(ge=2, description="samples per step over all ranks")
    accumulate: int = Field(1, ge=1, description="micro-batches per step; contrastive objectives refuse more than 1")
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="muon: Muon for the matrices of linear layers, AdamW for the rest")
    lr: float = Field(5e-4, gt=0, description="peak learning rate")
    other_lr: float | None = Field(None, gt=0, description="muon: peak learning rate of what AdamW moves; null: lr")
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW betas")
    eps: float = Field(1e-6, gt=0, description="AdamW epsilon")
    weight_decay: float = Field(0.2, ge=0, description="decoupled weight decay, on matrices and kernels only")
    warmup: int = Field(0, ge=0, description="steps of linear warm-up; decay to zero follows")
    decay: Literal["cosine", "linear"] = Field("cosine", description="linear: constant first, to zero over the last decay_share of the steps")
    decay_share: float = Field(1.0, gt=0, le=1, description="part of the steps over which a linear decay takes place")
    grad_clip: float | None = Field(None, gt=0, description="largest gradient norm; null: not clipped")
    crop_scale: tuple[float, float] = Field((0.9, 1.0), description="area of the random resized crop, as a share")
    decode_margin: float = Field(1.0, ge=1, description="a JPEG is decoded to at least this times the view's side")
    seed: int = Field(0, description="weights, order and every other draw")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 autocast on CUDA devices that have it, else fp32"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    workers: int = Field(2, ge=0, description="threads that decode (decoders release the GIL); 0: in the training loop")
    prefetch: int = Field(3, ge=1, description="batches prepared ahead")
    threads: int | None = Field(None, ge=1, description="compute threads; null: torch's default")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="checkpoints kept")
    log_every: int = Field(10, ge=1, description="steps between lines of metrics.jsonl")

    record_losses: bool = Field(
        False, description="after the last step go over the set once more and write each sample's loss by its key into losses/ (for noise_prob)"
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of accumulate {self.accumulate}")
        if self.warmup > self.steps:
            raise ValueError(f"warmup {self.warmup} is longer than the training of {self.steps} steps")
        return self


def resolve_model(model: str | dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The open_clip model config and preprocessing config that `TrainConfig.model` means.

    Accepts what open_clip writes (`{"model_cfg": ..., "preprocess_cfg": ...}`) and bare model configs.
    Raises TrainError for a name open_clip does not know or a file that cannot be read.
    """
    if isinstance(model, dict):
        found = model
    elif model.endswith(".json"):
        try:
            found = json.loads(Path(model).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise TrainError(f"option model: cannot read the config {model}: {error}") from error
    else:
        found = _named_config(model)
    if "model_cfg" in found:
        return found["model_cfg"], found.get("preprocess_cfg", {})
    return found, {}


def _named_config(name: str) -> dict[str, Any]:
    import difflib

    import open_clip

    found = open_clip.get_model_config(name)
    if found is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TrainError(f"option model: open_clip knows no model {name!r}.{hint} A path must end in .json.")
    return found
