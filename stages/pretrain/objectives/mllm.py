"""MLLM: cross-entropy on the answers of requests about an image, Qwen2-VL form (Wang et al. 2024, arXiv 2409.12191).

Where samples carry them, two training-only losses are added that say more per image than an answer's few tokens do: classes
of image tokens, and the truth of each claim of a text that the model reads. Their heads are no part of the exported model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from stages.pretrain.dialogue import IGNORED, Dialogue, DialogueLayout, Laid, Turn
from stages.pretrain.nets.mllm import Mllm, build_mllm, load_weights, save_mllm
from stages.pretrain.objectives.base import Batch, Needs, Objective, ObjectiveConfig, Sample, Tokenize, normalise, stack_images


class MllmConfig(ObjectiveConfig):
    """Parameters of the MLLM objective."""

    caption_prompt: str = Field("caption_descriptive", description="prompt whose answer a sample's plain caption is")
    dialogues: bool = Field(False, description="a sample's chosen text is a dialogue in JSON (stages/pretrain/dialogue.py), no caption")
    length_power: float = Field(0.0, ge=0, le=1, description="tokens of an answer of n tokens weigh n ** -this: 0 counts tokens, 1 answers")
    image_weight: float = Field(0.0, ge=0, description="weight of the classes of image tokens, mean over the heads; 0: not asked for")
    claim_weight: float = Field(0.0, ge=0, description="weight of the truth of claims; 0: not asked for")
    image_only: bool = Field(False, description="train the vision tower on the classes of image tokens and nothing else")


class MllmObjective(Objective):
    """Mean over the samples of the weighted mean cross-entropy of their answers' tokens; prompts, images and padding carry none."""

    Config = MllmConfig
    splittable = True
    _layout: DialogueLayout
    _heads: tuple[str, ...] = ()

    @property
    def needs(self) -> Needs:
        return Needs(columns=("caption",), views=("eval",))  # positions are asked for, so nothing is cropped

    def build(self, model_cfg: dict[str, Any]) -> Mllm:  # type: ignore[override]
        model = build_mllm(model_cfg)
        vision = model.net.config.vision_config
        side = model_cfg["image_size"] // (vision.patch_size * vision.spatial_merge_size)
        self._layout = DialogueLayout(model.processor.tokenizer, side, self.config.length_power)
        self._heads = tuple(model.image_heads)
        return model

    def image_size(self, model_cfg: dict[str, Any]) -> int:
        return model_cfg["image_size"]

    def tokenizer(self, model: Any, source: str) -> Tokenize | None:
        return None  # the layout of a dialogue tokenises part by part

    def export(self, model: Any, preprocess: Any, folder: Path) -> str:
        from stages.models.open_clip_loader import weights_digest

        save_mllm(model, folder)
        return weights_digest(model.net.state_dict())

    def start_from(self, model: Any, spec: str) -> None:
        load_weights(model, Path(spec))

    def collate(self, samples: Sequence[Sample], tokenize: Tokenize | None) -> Batch:
        """`images` uint8 [B, S, S, 3], `image_labels` int64 [B, heads, P], and unless image_only: `tokens`, `targets`, `weights`,
        `claims` [B, L], `positions` int64 [B, 3, L], `mask` bool [B, 1, L, L]; padding is on the right."""
        dialogues = [self._dialogue(sample) for sample in samples]
        batch: Batch = {"images": stack_images(samples, "eval")}
        if self.config.image_weight:
            labels = [[d.image_labels[head] for head in self._heads] for d in dialogues]
            batch["image_labels"] = torch.tensor(labels, dtype=torch.int64)
        if not self.config.image_only:
            batch |= stack_dialogues([self._layout.lay(d.turns) for d in dialogues])
        return batch

    def _dialogue(self, sample: Sample) -> Dialogue:
        if self.config.dialogues:
            return Dialogue.from_json(sample.caption, sample.key)
        return Dialogue((Turn(self.config.caption_prompt, sample.caption),))

    def losses(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        features = model.image_features(batch["images"])
        losses: dict[str, torch.Tensor] = {}
        if "image_labels" in batch:
            parts = [
                F.cross_entropy(head(features).float().flatten(0, 1), batch["image_labels"][:, number].flatten())
                for number, head in enumerate(model.image_heads.values())
            ]
            losses["image"] = self.config.image_weight * torch.stack(parts).mean()
        if "tokens" not in batch:
            return losses
        hidden = model.hidden(features, batch["tokens"], batch["positions"].transpose(0, 1), batch["mask"])
        losses["answer"] = answer_loss(model.net.lm_head, hidden, batch["targets"], batch["weights"])
        if self.config.claim_weight:
            losses["claims"] = self.config.claim_weight * claim_loss(model.claim_head, hidden, batch["claims"])
        return losses

    def tiny(self) -> tuple[Mllm, Batch]:  # type: ignore[override]
        model = self.build(TINY_MLLM)
        rng = np.random.default_rng(0)
        samples = [
            Sample(key=f"{i:032x}", views={"eval": rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)}, caption=f"a shape number {i}",
                   texts=(), epoch=0, seed=0)
            for i in range(8)
        ]
        return model, normalise(self.collate(samples, None), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


TINY_MLLM: dict[str, Any] = {
    "image_size": 32,
    "vocabulary": "rendered",
    "text": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1},
    "vision": {"depth": 1, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 1, "patch_size": 8, "spatial_merge_size": 2},
}


def stack_dialogues(laid: Sequence[Laid]) -> Batch:
    """Dialogues side by side, padded on the right. A padded place sees itself only, and nothing sees it."""
    count, longest = len(laid), max(len(one.tokens) for one in laid)
    tokens = np.zeros((count, longest), dtype=np.int64)
    positions = np.zeros((count, 3, longest), dtype=np.int64)
    targets = np.full((count, longest), IGNORED, dtype=np.int64)
    weights = np.zeros((count, longest), dtype=np.float32)
    claims = np.full((count, longest), -1.0, dtype=np.float32)
    mask = np.broadcast_to(np.eye(longest, dtype=bool), (count, 1, longest, longest)).copy()
    for row, one in enumerate(laid):
        n = len(one.tokens)
        tokens[row, :n], positions[row, :, :n] = one.tokens, one.positions
        targets[row, :n], weights[row, :n], claims[row, :n] = one.targets, one.weights, one.claims
        mask[row, 0, :n, :n] = one.visible
    arrays = {"tokens": tokens, "positions": positions, "targets": targets, "weights": weights, "claims": claims, "mask": mask}
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def answer_loss(lm_head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean over rows of the weighted mean of the cross-entropy where `targets` is not -100.

    hidden [B, L, W], targets int64 [B, L], weights [B, L]. Logits are computed only where they count.
    """
    chosen = targets != IGNORED
    # weights of a row sum to 1, so that a batch's loss is the mean of the losses of its parts
    shares = weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-9)
    each = F.cross_entropy(lm_head(hidden[chosen]).float(), targets[chosen], reduction="none")
    return (each * shares[chosen]).sum() / len(targets)


def claim_loss(head: nn.Module, hidden: torch.Tensor, claims: torch.Tensor) -> torch.Tensor:
    """Mean over rows of the mean binary cross-entropy of their claims (1 true, 0 false, -1 no claim)."""
    chosen = claims >= 0
    shares = chosen / chosen.sum(dim=1, keepdim=True).clamp_min(1)
    each = F.binary_cross_entropy_with_logits(head(hidden[chosen]).squeeze(-1).float(), claims[chosen], reduction="none")
    return (each * shares[chosen]).sum() / len(claims)
