"""MLLM: cross-entropy on the answers of requests about an image, Qwen2-VL form (Wang et al. 2024, arXiv 2409.12191).

Where samples carry them, two training-only losses are added that say more per image than an answer's few tokens do: classes
of image tokens, and the truth of each claim of a text that the model reads. Their heads are no part of the exported model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from stages.pretrain.dialogue import IGNORED, Dialogue, DialogueLayout, Laid, Turn
from stages.pretrain.nets.mllm import Mllm, build_mllm, load_weights, save_mllm
from stages.pretrain.nets.word_tokenizer import TEMPLATE_WITHOUT_SYSTEM
from stages.pretrain.objectives.base import Batch, Needs, Objective, ObjectiveConfig, Sample, Tokenize, normalise, stack_images


class MllmConfig(ObjectiveConfig):
    """Parameters of the MLLM objective."""

    caption_prompt: str = Field("caption_descriptive", description="prompt whose answer a sample's plain caption is")
    dialogues: bool = Field(False, description="a sample's chosen text is a dialogue in JSON (stages/pretrain/dialogue.py), no caption")
    length_power: float = Field(0.0, ge=0, le=1, description="tokens of an answer of n tokens weigh n ** -this: 0 counts tokens, 1 answers")
    image_weight: float = Field(0.0, ge=0, description="weight of the classes of image tokens, mean over the heads; 0: not asked for")
    claim_weight: float = Field(0.0, ge=0, description="weight of the truth of claims; 0: not asked for")
    claim_place_weight: float = Field(0.0, ge=0, description="weight of the cells of the objects that claims mean; 0: not asked for")
    place_weight: float = Field(0.0, ge=0, description="weight of the classes of image tokens within the language model; 0: not asked for")
    system_text: bool = Field(
        True, description="false: requests stand without the system text, which is two fifths of a short one; the exported chat template leaves it out"
    )
    freeze_vision: bool = Field(False, description="train the language model only")
    start: Literal["all", "vision"] = Field("all", description="vision: of the weights that the training starts from, take the vision tower's")
    image_only: bool = Field(False, description="train the vision tower on the classes of image tokens and nothing else")


class MllmObjective(Objective):
    """Mean over the samples of the weighted mean cross-entropy of their answers' tokens; prompts, images and padding carry none."""

    Config = MllmConfig
    splittable = True
    _layout: DialogueLayout
    _heads: tuple[str, ...] = ()
    _place_heads: tuple[str, ...] = ()

    @property
    def needs(self) -> Needs:
        return Needs(columns=("caption",), views=("eval",))  # positions are asked for, so nothing is cropped

    def build(self, model_cfg: dict[str, Any]) -> Mllm:  # type: ignore[override]
        model = build_mllm(model_cfg)
        vision = model.net.config.vision_config
        side = model_cfg["image_size"] // (vision.patch_size * vision.spatial_merge_size)
        self._layout = DialogueLayout(model.processor.tokenizer, side, self.config.length_power, self.config.system_text)
        self._heads, self._place_heads = tuple(model.image_heads), tuple(model.place_heads)
        if not self.config.system_text:
            model.processor.chat_template = model.processor.tokenizer.chat_template = TEMPLATE_WITHOUT_SYSTEM
        if self.config.freeze_vision:
            model.net.model.visual.requires_grad_(False)
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
        load_weights(model, Path(spec), self.config.start == "vision")

    def collate(self, samples: Sequence[Sample], tokenize: Tokenize | None) -> Batch:
        """`images` uint8 [B, S, S, 3], `image_labels` and `place_labels` int64 [B, heads, P], and unless image_only: `tokens`,
        `targets`, `weights`, `claims`, `claim_places` [B, L], `positions` int64 [B, 3, L], `mask` bool [B, 1, L, L], `lengths` int64 [B].
        Padding is on the right. Rows stand by length, so that micro-batches have less of it (see `losses`)."""
        dialogues = [self._dialogue(sample) for sample in samples]
        laid: list[Laid] = []
        if not self.config.image_only:
            laid = [self._layout.lay(d.turns) for d in dialogues]
            order = sorted(range(len(samples)), key=lambda row: len(laid[row].tokens))
            samples, dialogues, laid = ([some[row] for row in order] for some in (samples, dialogues, laid))
        batch: Batch = {"images": stack_images(samples, "eval")}
        asked = (("image_labels", self._heads, self.config.image_weight), ("place_labels", self._place_heads, self.config.place_weight))
        for name, heads, weight in asked:
            if weight:
                batch[name] = torch.tensor([[d.image_labels[head] for head in heads] for d in dialogues], dtype=torch.int64)
        return batch | stack_dialogues(laid) if laid else batch

    def _dialogue(self, sample: Sample) -> Dialogue:
        if self.config.dialogues:
            return Dialogue.from_json(sample.caption, sample.key)
        return Dialogue((Turn(self.config.caption_prompt, sample.caption),))

    def losses(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        features = model.image_features(batch["images"])
        losses: dict[str, torch.Tensor] = {}
        if "image_labels" in batch:
            losses["image"] = self.config.image_weight * class_loss(model.image_heads.values(), features, batch["image_labels"])
        if "tokens" not in batch:
            return losses
        batch = trim(batch)
        hidden, places = model.hidden(features, batch["tokens"], batch["positions"].transpose(0, 1), batch["mask"])
        if "place_labels" in batch:
            losses["place"] = self.config.place_weight * class_loss(model.place_heads.values(), places, batch["place_labels"])
        if (batch["targets"] != IGNORED).any():
            losses["answer"] = answer_loss(model.net.lm_head, hidden, batch["targets"], batch["weights"])
        if self.config.claim_weight:
            losses["claims"] = self.config.claim_weight * claim_loss(model.claim_head, hidden, batch["claims"])
        if self.config.claim_place_weight and (batch["claim_places"] >= 0).any():
            chosen = batch["claim_places"] >= 0
            found = F.cross_entropy(model.claim_place_head(hidden[chosen]).float(), batch["claim_places"][chosen])
            losses["claim_places"] = self.config.claim_place_weight * found
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
    claim_places = np.full((count, longest), -1, dtype=np.int64)
    mask = np.broadcast_to(np.eye(longest, dtype=bool), (count, 1, longest, longest)).copy()
    for row, one in enumerate(laid):
        n = len(one.tokens)
        tokens[row, :n], positions[row, :, :n] = one.tokens, one.positions
        targets[row, :n], weights[row, :n] = one.targets, one.weights
        claims[row, :n], claim_places[row, :n] = one.claims, one.claim_places
        mask[row, 0, :n, :n] = one.visible
    arrays = {
        "tokens": tokens, "positions": positions, "targets": targets, "weights": weights, "claims": claims, "claim_places": claim_places, "mask": mask,
        "lengths": np.array([len(one.tokens) for one in laid]),
    }
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def trim(batch: Batch) -> Batch:
    """A part of a batch without the padding that only the other parts need."""
    longest = int(batch["lengths"].max())
    cut = {name: batch[name][..., :longest] for name in ("tokens", "positions", "targets", "weights", "claims", "claim_places")}
    return {**batch, **cut, "mask": batch["mask"][..., :longest, :longest]}


def class_loss(heads: Iterable[nn.Module], features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over heads and tokens of the cross-entropy of the heads' classes. features [B, P, W], labels int64 [B, heads, P]."""
    parts = [F.cross_entropy(head(features).float().flatten(0, 1), labels[:, number].flatten()) for number, head in enumerate(heads)]
    return torch.stack(parts).mean()


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
