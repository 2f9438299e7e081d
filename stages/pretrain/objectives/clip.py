"""CLIP: symmetric cross-entropy over the in-batch similarities (Radford et al. 2021, arXiv 2103.00020, section 2.3)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from open_clip.loss import ClipLoss
from torch import nn
from torch.nn import functional

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
from stages.pretrain.text_mix import MIX_FIELD, TextMix, check_mix, mix_reads, mixed_text


class ClipConfig(ObjectiveConfig):
    """Parameters of the CLIP objective."""

    text: TextMix = MIX_FIELD


def choose_text(sample: Sample, mix: TextMix) -> str:
    """One of the sample's texts, drawn by (seed, epoch, key)."""
    if mix == "caption":
        return sample.caption
    rng = generator(sample.seed, sample.epoch, sample.key, "text")
    return mixed_text(mix, sample.caption, sample.texts, sample.kinds, rng)


def collate_pairs(samples: Sequence[Sample], tokenize: Tokenize, text: TextMix) -> Batch:
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
        return Needs(columns=mix_reads(self.config.text))

    def check_kinds(self, kinds: Collection[str]) -> None:
        check_mix(self.config.text, kinds)

    def collate(self, samples: Sequence[Sample], tokenize: Tokenize) -> Batch:
        return collate_pairs(samples, tokenize, self.config.text)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        out = model(batch["images"], batch["tokens"])
        loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=dist.rank(), world_size=dist.world_size())
        return {"contrastive": loss(out.image_global, out.text_global, out.logit_scale)}

    def row_losses(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean of both directions' cross-entropies of each row among this batch's."""
        out = model(batch["images"], batch["tokens"])
        logits = (out.logit_scale * out.image_global @ out.text_global.T).float()
        own = torch.arange(len(logits), device=logits.device)
        return sum(functional.cross_entropy(one, own, reduction="none") for one in (logits, logits.T)) / 2  # type: ignore[return-value]

    def metrics(self, model: Any) -> dict[str, float]:
        return {"logit_scale": float(model.clip.logit_scale.detach().exp())}

    def after_step(self, model: nn.Module) -> None:
        clamp_logit_scale(model)
