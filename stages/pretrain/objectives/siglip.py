"""SigLIP: a sigmoid on every image-text pair of the batch (Zhai et al. 2023, arXiv 2303.15343, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from open_clip.loss import SigLipLoss
from pydantic import Field
from torch import nn
from torch.nn import functional

from stages.pretrain import dist
from stages.pretrain.nets.towers import ClipTowers
from stages.pretrain.objectives.base import (
    Batch,
    Needs,
    Objective,
    ObjectiveConfig,
    Sample,
    Tokenize,
    clamp_logit_scale,
)
from stages.pretrain.objectives.clip import collate_pairs
from stages.pretrain.text_mix import MIX_FIELD, TextMix, check_mix, mix_reads


class SiglipConfig(ObjectiveConfig):
    """Parameters of the SigLIP objective; the initial values are those of the paper's section 3.2."""

    text: TextMix = MIX_FIELD
    init_scale: float = Field(10.0, gt=0, description="initial temperature t' = exp(log scale)")
    init_bias: float = Field(-10.0, description="initial bias: at the start almost every pair is a negative")


class SiglipObjective(Objective):
    """open_clip's SigLipLoss; texts travel from rank to rank, so that no rank holds all pairs."""

    Config = SiglipConfig
    splittable = False

    @property
    def needs(self) -> Needs:
        return Needs(columns=mix_reads(self.config.text))

    def check_kinds(self, kinds: Collection[str]) -> None:
        check_mix(self.config.text, kinds)

    def build(self, model_cfg: dict[str, Any]) -> ClipTowers:
        start = {"init_logit_scale": math.log(self.config.init_scale), "init_logit_bias": self.config.init_bias}
        return super().build({**start, **model_cfg})

    def collate(self, samples: Sequence[Sample], tokenize: Tokenize) -> Batch:
        return collate_pairs(samples, tokenize, self.config.text)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        out = model(batch["images"], batch["tokens"])
        loss = SigLipLoss(rank=dist.rank(), world_size=dist.world_size())
        return {"sigmoid": loss(out.image_global, out.text_global, out.logit_scale, out.logit_bias)}

    def row_losses(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean over both directions of the row's own term and those with all others of this batch."""
        out = model(batch["images"], batch["tokens"])
        logits = (out.logit_scale * out.image_global @ out.text_global.T + out.logit_bias).float()
        terms = -functional.logsigmoid(logits * (2 * torch.eye(len(logits), device=logits.device) - 1))
        return (terms.sum(dim=0) + terms.sum(dim=1)) / 2

    def metrics(self, model: Any) -> dict[str, float]:
        return {
            "logit_scale": float(model.clip.logit_scale.detach().exp()),
            "logit_bias": float(model.clip.logit_bias.detach()),
        }

    def after_step(self, model: nn.Module) -> None:
        clamp_logit_scale(model)
