"""What an objective is: the part of a training that differs from loss to loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from stages.models.open_clip_loader import Preprocess
from stages.models.tokenize import CachedTokenizer, tokenizer_for
from stages.pretrain.errors import TrainError
from stages.pretrain.export import export_clip, preprocess_dict
from stages.pretrain.nets.towers import ClipTowers, build_clip, start_from_clip

Batch = dict[str, torch.Tensor]
Tokenize = Callable[[Sequence[str]], torch.Tensor]

# The zero point and the top of CLIP's learned temperature: exp stays in [1, 100] (CLIP, section 2.5; open_clip).
LOGIT_SCALE_RANGE = (0.0, math.log(100.0))


class ObjectiveConfig(BaseModel):
    """Parameters of an objective; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class Needs:
    """What an objective reads of each sample: text columns ('caption', 'texts', 'kinds') and image views ('train', 'eval')."""

    columns: tuple[str, ...] = ("caption",)
    views: tuple[str, ...] = ("train",)


@dataclass(slots=True)
class Sample:
    """One sample as the loader hands it to `collate`: `views` maps a view's name to uint8 [S, S, 3]."""

    key: str
    views: dict[str, np.ndarray]
    caption: str
    texts: Sequence[str]
    epoch: int
    seed: int
    kinds: Sequence[str] = ()  # of `texts`, where the objective needs them


class Objective(ABC):
    """One pre-training objective. Subclasses live one per file; the file name is the objective's name."""

    Config: ClassVar[type[ObjectiveConfig]] = ObjectiveConfig
    splittable: ClassVar[bool]
    """Whether the loss of a batch is the mean of the losses of its parts. Contrastive losses are not: their negatives
    are the rest of the batch."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config: Any = config

    @property
    def needs(self) -> Needs:
        """Columns and views that `collate` reads."""
        return Needs()

    def check_kinds(self, kinds: Collection[str]) -> None:  # noqa: B027  (nothing to check is a fine default)
        """Look at the kinds of text that the data has, before the training. Raises TrainError where one that is asked for is not among them."""

    def build(self, model_cfg: dict[str, Any]) -> ClipTowers:
        """The towers (and heads) that this objective trains, randomly initialised from an open_clip model config."""
        return ClipTowers(build_clip(model_cfg), model_cfg)

    def image_size(self, model_cfg: dict[str, Any]) -> int:
        """Side in pixels of the images that the model of this config sees."""
        return model_cfg["vision_cfg"].get("image_size", 224)

    def tokenizer(self, model: Any, source: str) -> Tokenize | None:
        """What `collate` tokenises with; `source` is the model's name or config file, '' where the config was given inline."""
        return tokenizer_for(model.model_cfg, source)

    def start_from(self, model: Any, spec: str) -> None:
        """Load the weights that `spec` names (see load_clip) into the model. Raises TrainError where they do not fit."""
        start_from_clip(model, spec)

    def export(self, model: Any, preprocess: Preprocess, folder: Path) -> str:
        """Write the trained model into `folder` for other programs; returns the digest of its weights."""
        return export_clip(model.clip, model.model_cfg, preprocess_dict(preprocess), folder)

    @abstractmethod
    def collate(self, samples: Sequence[Sample], tokenize: Tokenize) -> Batch:
        """One batch of tensors; images stay uint8 and are normalised on the device by the trainer."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Scalar losses of this rank's rows by name, already weighted: their sum is what is minimised."""

    def row_losses(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The loss of each row of a batch, float32 [B]: what tells noisy pairs from clean ones after a short training (`record_losses`).

        Raises TrainError where an objective does not say what one row's loss is."""
        raise TrainError(f"option record_losses: {type(self).__name__} has no loss per sample; clip and siglip have one")

    def metrics(self, model: Any) -> dict[str, float]:
        """Further figures for the log."""
        return {}

    def after_step(self, model: nn.Module) -> None:  # noqa: B027  (nothing to do is a fine default)
        """Bring parameters back into their range after each optimizer step."""

    def tiny(self) -> tuple[ClipTowers, Batch]:
        """A model of a few thousand parameters and a batch of 8 for a test on CPU; the caller seeds torch."""
        model = self.build(TINY_CLIP)
        rng = np.random.default_rng(0)
        samples = [
            Sample(key=f"{i:032x}", views={view: rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                                           for view in self.needs.views},
                   caption=f"sample number {i}", texts=[f"sample number {i}"], epoch=0, seed=0)
            for i in range(8)
        ]
        batch = self.collate(samples, CachedTokenizer(context_length=8))
        return model, normalise(batch, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


TINY_CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def stack_images(samples: Sequence[Sample], view: str) -> torch.Tensor:
    """The named view of all samples as uint8 [B, S, S, 3]."""
    return torch.from_numpy(np.stack([sample.views[view] for sample in samples]))


def normalise(batch: Batch, mean: Sequence[float], std: Sequence[float]) -> Batch:
    """Replace every uint8 [B, S, S, 3] of the batch by float [B, 3, S, S] with the model's mean and spread removed."""
    out: Batch = {}
    for name, value in batch.items():
        if value.dtype == torch.uint8 and value.ndim == 4:
            shift = torch.tensor(mean, device=value.device).view(1, 3, 1, 1)
            spread = torch.tensor(std, device=value.device).view(1, 3, 1, 1)
            value = (value.permute(0, 3, 1, 2).float().div(255.0) - shift) / spread
        out[name] = value
    return out


def clamp_logit_scale(model: Any) -> None:
    """Keep the log of CLIP's temperature inside [0, ln 100], after each step as open_clip does."""
    with torch.no_grad():
        model.clip.logit_scale.clamp_(*LOGIT_SCALE_RANGE)
