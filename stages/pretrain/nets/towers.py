"""The contract between towers and objectives, and open_clip models behind it.

Shapes: B samples, P image tokens, T text tokens, C embedding width, W tower width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from stages.models.open_clip_loader import load_clip
from stages.pretrain.errors import TrainError

_LENGTH_GROUPS = 4


@dataclass(slots=True)
class TowerOutput:
    """What the towers give an objective. Global embeddings have unit length; tokens and masks only where asked for."""

    image_global: torch.Tensor | None  # [B, C]
    text_global: torch.Tensor | None  # [B, C]
    logit_scale: torch.Tensor  # scalar, already exponentiated
    logit_bias: torch.Tensor | None  # scalar
    image_tokens: torch.Tensor | None = None  # [B, P, W]
    text_tokens: torch.Tensor | None = None  # [B, T, W]
    text_mask: torch.Tensor | None = None  # bool [B, T], True where a token stands


class ClipTowers(nn.Module):
    """An open_clip CLIP or CustomTextCLIP as towers; `clip` is the open_clip model itself and what is exported."""

    def __init__(self, clip: nn.Module, model_cfg: dict[str, Any]) -> None:
        super().__init__()
        self.clip: Any = clip  # open_clip's models share attributes, not a base class
        self.model_cfg = model_cfg

    def forward(
        self, images: torch.Tensor | None = None, tokens: torch.Tensor | None = None, with_tokens: bool = False,
    ) -> TowerOutput:
        """Embed images (float [B, 3, H, H], normalised) and token ids (int64 [B, T]); either may be absent."""
        image_global = image_tokens = text_global = text_tokens = mask = None
        if images is not None:
            image_global, image_tokens = self._encode_image(images, with_tokens)
        if tokens is not None:
            text_global, text_tokens, mask = self._encode_text(tokens, with_tokens)
        return TowerOutput(
            image_global=image_global, text_global=text_global, logit_scale=self.clip.logit_scale.exp(),
            logit_bias=self.clip.logit_bias, image_tokens=image_tokens, text_tokens=text_tokens, text_mask=mask,
        )

    def _encode_image(self, images: torch.Tensor, with_tokens: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not with_tokens:
            return F.normalize(self.clip.visual(images), dim=-1), None
        if not hasattr(self.clip.visual, "output_tokens"):
            raise TrainError(f"{type(self.clip.visual).__name__} gives no image tokens: use a VisionTransformer tower")
        self.clip.visual.output_tokens = True
        try:
            pooled, image_tokens = self.clip.visual(images)
        finally:
            self.clip.visual.output_tokens = False
        return F.normalize(pooled, dim=-1), image_tokens

    def _encode_text(
        self, tokens: torch.Tensor, with_tokens: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if not _is_plain_causal(self.clip):
            if with_tokens:
                raise TrainError("text tokens are read from open_clip's own causal text tower only")
            return self.clip.encode_text(tokens, normalize=True), None, None
        end = tokens.argmax(dim=-1)  # the end token has the highest id; id 0 is padding, but also a lone '!'
        if with_tokens:
            length = int(end.max()) + 1
            hidden = self._text_hidden(tokens[:, :length])
            mask = torch.arange(length, device=tokens.device) <= end[:, None]
            return self._pool_text(hidden, end), hidden, mask
        if tokens.device.type != "cpu":
            return self._pool_text(self._text_hidden(tokens[:, :int(end.max()) + 1]), end), None, None
        # On a CPU padding costs as much as text: rows of like length run together.
        order = end.argsort()
        pooled = [
            self._pool_text(self._text_hidden(tokens[rows, :int(end[rows[-1]]) + 1]), end[rows])
            for rows in order.tensor_split(_LENGTH_GROUPS) if len(rows)
        ]
        return torch.cat(pooled)[order.argsort()], None, None

    def _text_hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, T, W]. Under a causal mask nothing behind the end token reaches it: columns may be cut."""
        length = tokens.shape[1]
        hidden = self.clip.token_embedding(tokens) + self.clip.positional_embedding[:length]
        hidden = self.clip.transformer(hidden, attn_mask=self.clip.attn_mask[:length, :length])
        return self.clip.ln_final(hidden)

    def _pool_text(self, hidden: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), end]
        return F.normalize(pooled @ self.clip.text_projection, dim=-1)


def _is_plain_causal(clip: nn.Module) -> bool:
    return (
        getattr(clip, "text_pool_type", "") == "argmax"
        and getattr(clip, "attn_mask", None) is not None
        and isinstance(getattr(clip, "text_projection", None), nn.Parameter)
    )


def build_clip(model_cfg: dict[str, Any]) -> nn.Module:
    """A randomly initialised open_clip model from its config (`embed_dim`, `vision_cfg`, `text_cfg`, ...).

    Raises TrainError where the config lacks a part or describes a model that is no pair of towers.
    """
    from open_clip.model import CLIP, CustomTextCLIP

    cfg = copy.deepcopy(model_cfg)
    missing = [part for part in ("embed_dim", "vision_cfg", "text_cfg") if part not in cfg]
    if missing:
        raise TrainError(f"the model config lacks {', '.join(missing)}")
    if "multimodal_cfg" in cfg:
        raise TrainError("the model config describes CoCa, which is not a pair of towers: use a CLIP or SigLIP config")
    if "timm_model_name" in cfg["vision_cfg"]:
        cfg["vision_cfg"]["timm_model_pretrained"] = False  # random means random: nothing is fetched
    if "hf_model_name" in cfg["text_cfg"]:
        cfg["text_cfg"]["hf_model_pretrained"] = False
    custom_text = cfg.pop("custom_text", False) or "hf_model_name" in cfg["text_cfg"]
    try:
        return (CustomTextCLIP if custom_text else CLIP)(**cfg)
    except (TypeError, AssertionError) as error:
        raise TrainError(f"open_clip refuses the model config: {error}") from error


def start_from_clip(model: ClipTowers, spec: str) -> None:
    """Load the weights `spec` names (see load_clip) into the towers. Raises TrainError where they do not fit."""
    loaded = load_clip(spec)
    try:
        missing, extra = model.clip.load_state_dict(loaded.model.state_dict(), strict=False)
    except RuntimeError as error:
        raise TrainError(f"option init: the weights of {spec!r} do not fit the model: {error}") from error
    # a model trained without a bias starts the sigmoid loss from the objective's initial one
    if extra or set(missing) - {"logit_bias"}:
        raise TrainError(
            f"option init: {spec!r} lacks {missing or 'nothing'} and has {extra or 'nothing'} beyond the model"
        )
