"""CLIP: symmetric cross-entropy over the in-batch similarities (Radford et al. 2021, arXiv 2103.00020, section 2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from open_clip.loss import ClipLoss
from pydantic import Field
from torch import nn

from stages.pretrain import dist
from stages.pretrain.draws import generator
from stages.pretrain.objectives.base import (
    Batch,
    Needs,
    Objective,
    ObjectiveConfig,
    Sample,
    Tokenize,
    clamp_logit_scale,
    stack_images,
)


class ClipConfig(ObjectiveConfig):
    """Parameters of the CLIP objective."""

    text: Literal["caption", "random"] = Field(
        "caption", description="'caption': the chosen caption; 'random': one of all texts, drawn anew each epoch"
    )


def choose_text(sample: Sample, how: str) -> str:
    """The sample's caption, or one of its texts drawn by (seed, epoch, key)."""
    if how == "caption" or len(sample.texts) < 2:
        return sample.caption
    rng = generator(sample.seed, sample.epoch, sample.key, "text")
    return sample.texts[int(rng.integers(len(sample.texts)))]


def collate_pairs(samples: Sequence[Sample], tokenize: Tokenize, text: str) -> Batch:
    """`images` uint8 [B, S, S, 3] and `tokens` int64 [B, T]."""
    return {
        "images": stack_images(samples, "train"),
        "tokens": tokenize([choose_text(sample, text) for sample in samples]),
    }


class ClipObjective(Objective):
    """open_clip's ClipLoss over all ranks' rows; each rank averages over its own rows."""

    Config = ClipConfig
    splittable = False

    @property
    def needs(self) -> Needs:
        return Needs(columns=("caption",) if self.config.text == "caption" else ("caption", "texts"))

    def collate(self, samples: Sequence[Sample], tokenize: Tokenize) -> Batch:
        return collate_pairs(samples, tokenize, self.config.text)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        out = model(batch["images"], batch["tokens"])
        loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=dist.rank(), world_size=dist.world_size())
        return {"contrastive": loss(out.image_global, out.text_global, out.logit_scale)}

    def metrics(self, model: Any) -> dict[str, float]:
        return {"logit_scale": float(model.clip.logit_scale.detach().exp())}

    def after_step(self, model: nn.Module) -> None:
        clamp_logit_scale(model)
