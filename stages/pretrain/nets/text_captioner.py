"""A captioner that is trained on texts alone: from embeddings of a frozen CLIP through learned queries into a language model's prefix.

MacCap (Qiu et al. 2024, arXiv 2401.02347), its released code. B samples, K features of a sample (sub-regions of an image, or copies of a text's
embedding), C embedding width of the CLIP, Q queries, W width of the language model, L tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from stages.models.open_clip_loader import LoadedClip, ModelLoadError, load_clip
from stages.models.sub_regions import NO_PATCHES, patch_count
from stages.pretrain.checkpoint import whole_folder
from stages.pretrain.errors import TrainError
from stages.pretrain.export import export_clip, preprocess_dict
from stages.pretrain.nets.mllm import read_vocabulary
from stages.pretrain.nets.word_tokenizer import word_tokenizer

IGNORED = -100
CONFIG_NAME, DECODER_NAME = "config.json", "decoder.safetensors"


class LanguageModelConfig(BaseModel):
    """The language model: either `weights`, or `config` with `vocabulary`, which is trained from random weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str | None = Field(None, description="folder in Hugging Face's format, or a name of its hub such as facebook/opt-125m (the paper's default)")
    train: bool = Field(False, description="train the language model of `weights` too; the paper leaves it as it is")
    config: dict[str, Any] | None = Field(None, description="transformers' config of a new model, such as {model_type: opt, hidden_size: 128}")
    vocabulary: str | None = Field(None, description="word list of a new model: a list that comes with the package (rendered), or a text file")

    @model_validator(mode="after")
    def _one_of_both(self) -> LanguageModelConfig:
        if (self.weights is None) == (self.config is None) or (self.config is None) != (self.vocabulary is None):
            raise ValueError("lm: give `weights`, or `config` and `vocabulary`")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("lm.config: `model_type` is missing, such as opt")
        return self


class CaptionerConfig(BaseModel):
    """`TrainConfig.model` of the objective `maccap`; sizes are those of the released code."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip: str = Field(description="the frozen CLIP, as load_clip names it: rendered_clip, NAME:TAG of open_clip, NAME:PATH, a folder")
    lm: LanguageModelConfig
    regions: int = Field(10, ge=1, description="features of a sample: sub-regions of an image; at most as many as its CLIP has patches")
    queries: int = Field(32, ge=1, description="learned queries, which become the language model's prefix")
    heads: int = Field(8, ge=1, description="attention heads of the layers between")
    layers: int = Field(1, ge=1, description="transformer decoder layers between features and prefix")


def captioner_config(model_cfg: dict[str, Any]) -> CaptionerConfig:
    """Raises TrainError for unknown keys and wrong values."""
    try:
        return CaptionerConfig(**model_cfg)
    except ValidationError as error:
        raise TrainError(f"option model: {error}") from error


class TextCaptioner(nn.Module):
    """Learned queries that attend to features, a three-layer perceptron, and the language model that goes on behind their prefix."""

    def __init__(self, width: int, config: CaptionerConfig, lm: Any, tokenizer: Any) -> None:
        super().__init__()
        if width % config.heads:
            raise TrainError(f"option model.heads: {config.heads} heads do not divide the CLIP's embedding width {width}")
        self.config, self.tokenizer = config, tokenizer
        inner = lm.get_input_embeddings().embedding_dim
        self.queries = nn.Parameter(torch.randn(config.queries, width) * width**-0.5)
        layer = nn.TransformerDecoderLayer(width, config.heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.attend = nn.TransformerDecoder(layer, config.layers, nn.LayerNorm(width))
        self.to_prefix = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, inner), nn.GELU(), nn.Linear(inner, inner))
        self.trains_lm = config.lm.train or config.lm.config is not None
        self._frozen: list[Any] = []  # moved with the model, but no part of its parameters and checkpoints
        if self.trains_lm:
            self.lm: Any = lm
        else:
            self._frozen.append(lm.requires_grad_(False).eval())

    @property
    def language_model(self) -> Any:
        return self.lm if self.trains_lm else self._frozen[0]

    def freeze_with(self, module: nn.Module) -> None:
        """Another module that is only used: it goes where this one goes."""
        self._frozen.append(module.requires_grad_(False).eval())

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> TextCaptioner:
        for module in self._frozen:
            module._apply(fn)
        return super()._apply(fn, recurse)

    def prefix(self, features: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, Q, W] that the language model reads in place of words, of features [B, K, C] of unit length.

        They are scaled to elements of about 1: as small as they come, a decoder from random weights learns for long to do without them."""
        return self.to_prefix(self.attend(self.queries.expand(len(features), -1, -1), features * features.shape[-1] ** 0.5))

    def logits(self, features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, L, vocabulary] of each token by the features [B, K, C] and the tokens before it; padding (-100) in `tokens` [B, L] is on the right."""
        lm = self.language_model
        before = self.prefix(features)
        words = lm.get_input_embeddings()(tokens.clamp_min(0))
        seen = torch.cat([tokens.new_ones(before.shape[:2]), (tokens != IGNORED).long()], dim=1)
        out = lm(inputs_embeds=torch.cat([before.to(words.dtype), words], dim=1), attention_mask=seen).logits
        return out[:, before.shape[1] - 1 : -1]

    def row_losses(self, features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of each row's tokens, [B]."""
        each = F.cross_entropy(self.logits(features, tokens).float().transpose(1, 2), tokens, ignore_index=IGNORED, reduction="none")
        return each.sum(dim=1) / (tokens != IGNORED).sum(dim=1).clamp_min(1)

    def encode(self, texts: list[str]) -> torch.Tensor:
        """Token ids int64 [B, L] of captions with their end, -100 behind it; at most 128."""
        ids = [self.tokenizer(text, add_special_tokens=False).input_ids[:127] + [self.tokenizer.eos_token_id] for text in texts]
        rows = torch.full((len(ids), max(map(len, ids))), IGNORED, dtype=torch.int64)
        for row, some in zip(rows, ids, strict=True):
            row[: len(some)] = torch.tensor(some)
        return rows

    @torch.inference_mode()
    def write(self, features: torch.Tensor, most: int, beams: int, fewest: int = 0) -> list[tuple[str, int, bool]]:
        """Captions of features [B, K, C] by beam search: text, tokens (its end counts), and whether it ended by itself."""
        before = self.prefix(features)
        lm, end = self.language_model, self.tokenizer.eos_token_id
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else end
        out = lm.generate(
            inputs_embeds=before.to(lm.dtype), attention_mask=torch.ones(before.shape[:2], dtype=torch.int64, device=before.device),
            num_beams=beams, max_new_tokens=most, min_new_tokens=fewest or None, do_sample=False, eos_token_id=end, pad_token_id=pad,
        )  # fmt: skip
        found = []
        for ids in out.tolist():
            stop = ids.index(end) if end in ids else None
            kept = [token for token in ids[:stop] if token != pad]
            found.append((self.tokenizer.decode(kept, skip_special_tokens=True).strip(), len(kept) + (stop is not None), stop is not None))
        return found


def with_noise(features: torch.Tensor, variance: float, noise: torch.Tensor) -> torch.Tensor:
    """Features [..., C] of unit length with standard normal `noise` times the root of `variance` on each element, of unit length again."""
    return F.normalize(features + noise * variance**0.5, dim=-1)


def build_captioner(model_cfg: dict[str, Any]) -> tuple[TextCaptioner, LoadedClip]:
    """A captioner with random queries, and its CLIP. Raises TrainError for a config that does not fit and weights that cannot be had."""
    config = captioner_config(model_cfg)
    try:
        clip = load_clip(config.clip)
    except ModelLoadError as error:
        raise TrainError(f"option model.clip: {error}") from error
    patches = patch_count(clip.model.visual)
    if not patches:
        raise TrainError(f"option model.clip: {config.clip!r}: {type(clip.model.visual).__name__} {NO_PATCHES}")
    config = config.model_copy(update={"regions": min(config.regions, patches)})
    lm, tokenizer = language_model(config.lm)
    captioner = TextCaptioner(int(clip.model_cfg["embed_dim"]), config, lm, tokenizer)
    captioner.freeze_with(clip.model)
    return captioner, clip


def language_model(config: LanguageModelConfig) -> tuple[Any, Any]:
    """A causal language model and its tokenizer. Raises TrainError."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        if config.weights is not None:
            lm = AutoModelForCausalLM.from_pretrained(config.weights, dtype=torch.float32)
            return lm, AutoTokenizer.from_pretrained(config.weights)
        assert config.config is not None and config.vocabulary is not None
        tokenizer = word_tokenizer(read_vocabulary(config.vocabulary))
        rest = {key: value for key, value in config.config.items() if key != "model_type"}
        ids = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        made = AutoConfig.for_model(config.config["model_type"], **{"vocab_size": len(tokenizer), **ids, **rest})
        return AutoModelForCausalLM.from_config(made), tokenizer
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        told = f"lm.weights {config.weights!r}" if config.weights else "lm.config"
        raise TrainError(f"option model.{told}: {error}. Without a network name the folder of a language model") from error


def save_captioner(model: TextCaptioner, clip: LoadedClip, variance: float, folder: Path) -> None:
    """Write all that `load_captioner` needs, CLIP and language model with it. The folder appears complete or not at all. Raises TrainError."""
    facts = {"captioner": "maccap", "variance": variance, "clip_digest": clip.digest, "note": clip.note, **model.config.model_dump(exclude={"clip", "lm"})}
    with whole_folder(folder) as beside:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items() if not name.startswith("lm.")}
        save_file(state, beside / DECODER_NAME)
        model.language_model.save_pretrained(beside / "lm")
        model.tokenizer.save_pretrained(beside / "lm")
        export_clip(clip.model, clip.model_cfg, preprocess_dict(clip.preprocess), beside / "clip")
        (beside / CONFIG_NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def load_captioner(folder: Path) -> tuple[TextCaptioner, LoadedClip, dict[str, Any]]:
    """The captioner that a training exported, its CLIP, and the facts of its config.json. Raises TrainError for another folder."""
    try:
        facts = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        sizes = {key: facts[key] for key in ("regions", "queries", "heads", "layers")}
    except (OSError, ValueError, KeyError) as error:
        raise TrainError(f"{folder} is no captioner that objective maccap exported: {error}") from error
    model, clip = build_captioner({"clip": str(folder / "clip"), "lm": {"weights": str(folder / "lm")}, **sizes})
    model.load_state_dict(load_file(folder / DECODER_NAME))
    return model.eval(), clip, facts
