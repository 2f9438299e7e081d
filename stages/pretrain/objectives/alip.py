"""ALIP: raw text and synthetic caption side by side, each row weighted by how well image, text and caption agree.

Yang et al. 2023, "ALIP: Adaptive Language-Image Pre-training with Synthetic Caption" (arXiv 2308.08428), section 3, and its released code.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from stages.pretrain import dist
from stages.pretrain.draws import generator
from stages.pretrain.nets.towers import ClipTowers, build_clip
from stages.pretrain.objectives.base import Batch, Needs, Objective, ObjectiveConfig, Sample, Tokenize, clamp_logit_scale, stack_images
from stages.pretrain.text_mix import ALT_TEXT, check_mix, generated_texts

_ROUNDING = 1e-6  # equal texts have a cosine of 1 but for rounding; at a running mean of 1 they must not count as being below it


class AlipConfig(ObjectiveConfig):
    """Parameters of the ALIP objective; values are those of the released code. `gamma_sample` and `gamma_pair` 0: plain InfoNCE on both texts."""

    captions: tuple[str, ...] = Field((), description="kinds of text that are the synthetic caption, such as [caption_short]; empty: any but the alt-text")
    momentum: float = Field(0.99, ge=0, lt=1, description="share of the old value in the running means of the three similarities")
    h_init: float = Field(1.0, ge=-1, le=1, description="first value of the running means; at 1 all weights are small for the first hundreds of steps")
    gamma_sample: float = Field(2.0, ge=0, description="sharpness of the weight of a sample, by its text and caption")
    gamma_pair: float = Field(2.0, ge=0, description="sharpness of the weight of a pair, by its image and text")


class AlipTowers(ClipTowers):
    """Towers with the running means of the similarities text-caption, image-text and image-caption, which checkpoints keep."""

    def __init__(self, clip: nn.Module, model_cfg: dict[str, Any], h_init: float) -> None:
        super().__init__(clip, model_cfg)
        self.history: torch.Tensor
        self.register_buffer("history", torch.full((3,), h_init, dtype=torch.float64))


@dataclass(slots=True)
class Weights:
    """Weights of the rows of a batch, each [B]: of the sample (at most 1), of its raw text and of its caption."""

    sample: torch.Tensor
    text: torch.Tensor
    caption: torch.Tensor


def similarities(image: torch.Tensor, text: torch.Tensor, caption: torch.Tensor) -> torch.Tensor:
    """Cosines S_tc, S_xt and S_xc of each row, [3, B], at least float32, of unit embeddings [B, C]; without gradient."""
    with torch.no_grad():
        image, text, caption = (one.to(torch.promote_types(one.dtype, torch.float32)) for one in (image, text, caption))
        return torch.stack([(text * caption).sum(-1), (image * text).sum(-1), (image * caption).sum(-1)])


def weigh(rows: torch.Tensor, history: torch.Tensor, gamma_sample: float, gamma_pair: float) -> Weights:
    """Language consistency weight and both description consistency weights (section 3.2) from `similarities` and their running means [3]."""
    above = rows - history.to(rows.dtype)[:, None]
    raw = (gamma_sample * above[0]).exp()
    pair = torch.where(raw < 1 - _ROUNDING, (gamma_pair * above[1:]).exp(), 1.0)
    return Weights(raw.clamp(max=1), pair[0], pair[1])


class AlipObjective(Objective):
    """Weighted InfoNCE of the image with its raw text plus that with its synthetic caption; each rank averages over its own rows.

    A sample without a synthetic caption (or without alt-text) has the same text twice; its weights are then 1.
    """

    Config = AlipConfig
    splittable = False

    @property
    def needs(self) -> Needs:
        return Needs(columns=("caption", "texts", "kinds"))

    def check_kinds(self, kinds: Collection[str]) -> None:
        check_mix(dict.fromkeys(self.config.captions, 1.0) or "caption", kinds, "captions")

    def build(self, model_cfg: dict[str, Any]) -> AlipTowers:
        return AlipTowers(build_clip(model_cfg), model_cfg, self.config.h_init)

    def collate(self, samples: Sequence[Sample], tokenize: Tokenize) -> Batch:
        """`images` uint8 [B, S, S, 3], `tokens` of the raw texts and `caption_tokens` int64 [B, T]."""
        pairs = [self._two_texts(sample) for sample in samples]
        return {
            "images": stack_images(samples, "train"),
            "tokens": tokenize([raw for raw, _ in pairs]),
            "caption_tokens": tokenize([caption for _, caption in pairs]),
        }

    def _two_texts(self, sample: Sample) -> tuple[str, str]:
        listed = list(zip(sample.texts, sample.kinds, strict=False))  # a sample in memory may come without kinds
        raw = next((text for text, kind in listed if kind == ALT_TEXT), None)
        own = [(text, kind) for text, kind in listed if not self.config.captions or kind in self.config.captions]
        written = generated_texts([text for text, _ in own], [kind for _, kind in own])
        rng = generator(sample.seed, sample.epoch, sample.key, "text")
        caption = written[int(rng.integers(len(written)))] if written else None
        return raw or caption or sample.caption, caption or raw or sample.caption

    def losses(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Both weighted losses; while the model trains, its running means move first."""
        image, text, caption, scale = self._embed(model, batch)
        rows = similarities(image, text, caption)
        if model.training:
            means = dist.mean_over_ranks(rows.double().mean(dim=1))
            model.history.mul_(self.config.momentum).add_(means, alpha=1 - self.config.momentum)
        weights = weigh(rows, model.history, self.config.gamma_sample, self.config.gamma_pair)
        images = dist.gather_with_grad(image)
        return {
            name: (weights.sample * weight * _pair_losses(image, images, other, scale)).mean()
            for name, other, weight in (("raw_text", text, weights.text), ("caption", caption, weights.caption))
        }

    def weights(self, model: Any, batch: Batch) -> Weights:
        """The weights that the model as it is gives the rows of a batch: `sample * text` is low where the raw text does not fit."""
        with torch.no_grad():
            image, text, caption, _ = self._embed(model, batch)
        return weigh(similarities(image, text, caption), model.history, self.config.gamma_sample, self.config.gamma_pair)

    def row_losses(self, model: Any, batch: Batch) -> torch.Tensor:
        """Unweighted loss of each row's raw text among this batch's: what is noisy is the raw text."""
        out = model(batch["images"], batch["tokens"])
        logits = (out.logit_scale * out.image_global @ out.text_global.T).float()
        return _both_directions(logits, logits.T, torch.arange(len(logits), device=logits.device))

    def metrics(self, model: Any) -> dict[str, float]:
        names = ("mean_text_caption", "mean_image_text", "mean_image_caption")
        return {"logit_scale": float(model.clip.logit_scale.detach().exp()), **dict(zip(names, model.history.tolist(), strict=True))}

    def after_step(self, model: nn.Module) -> None:
        clamp_logit_scale(model)

    @staticmethod
    def _embed(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Unit embeddings of images, raw texts and captions, [B, C] each, and the logit scale; one pass of the text tower reads both texts."""
        out = model(batch["images"], torch.cat([batch["tokens"], batch["caption_tokens"]]))
        text, caption = out.text_global.chunk(2)
        return out.image_global, text, caption, out.logit_scale


def _pair_losses(image: torch.Tensor, images: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """InfoNCE of each of this rank's rows, [B], among the rows of all ranks; `images` are those of all ranks."""
    own = torch.arange(len(image), device=image.device) + dist.rank() * len(image)
    return _both_directions(scale * image @ dist.gather_with_grad(text).T, scale * text @ images.T, own)


def _both_directions(to_texts: torch.Tensor, to_images: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Mean of the cross-entropies of an image among texts and of its text among images."""
    return (functional.cross_entropy(to_texts, own, reduction="none") + functional.cross_entropy(to_images, own, reduction="none")) / 2
