"""MacCap: a captioner trained on texts alone, by embeddings of a frozen CLIP with noise (Qiu et al. 2024, arXiv 2401.02347).

A text's embedding and an image's differ by what is about a Gaussian: a decoder that has learned to tell a text from its noisy embedding tells one from
an image's. Images of the dataset are not read. `stages/models/maccap.py` writes captions of images with what this exports.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from stages.models.open_clip_loader import LoadedClip, weights_digest
from stages.pretrain.nets.text_captioner import TextCaptioner, build_captioner, save_captioner, with_noise
from stages.pretrain.objectives.base import Batch, Needs, Objective, ObjectiveConfig, Sample, Tokenize
from stages.pretrain.objectives.clip import choose_text
from stages.pretrain.text_mix import MIX_FIELD, TextMix, mix_reads

VARIANCE = 0.016


class MaccapConfig(ObjectiveConfig):
    """Parameters of the MacCap objective."""

    text: TextMix = MIX_FIELD
    variance: float = Field(VARIANCE, ge=0, description="of the noise on each element of a text's embedding; the released code's value")


class MaccapObjective(Objective):
    """Mean over the samples of the mean cross-entropy of their texts' tokens, so that a batch's loss is the mean of its parts'.

    (The released code takes the mean over all tokens of a batch.)
    """

    Config = MaccapConfig
    splittable = True
    _clip: LoadedClip

    @property
    def needs(self) -> Needs:
        return Needs(columns=mix_reads(self.config.text), views=())

    def build(self, model_cfg: dict[str, Any]) -> TextCaptioner:  # type: ignore[override]
        model, self._clip = build_captioner(model_cfg)
        self._encode = model.encode
        return model

    def image_size(self, model_cfg: dict[str, Any]) -> int:
        return self._clip.preprocess.size

    def tokenizer(self, model: Any, source: str) -> Tokenize | None:
        return None  # a text is read by two tokenizers, the CLIP's and the language model's

    def start_from(self, model: Any, spec: str) -> None:
        from stages.pretrain.errors import TrainError

        raise TrainError("option init: maccap starts from `model.clip` and `model.lm`; leave init out")

    def export(self, model: Any, preprocess: Any, folder: Path) -> str:
        save_captioner(model, self._clip, self.config.variance, folder)
        return weights_digest(model.state_dict())

    def collate(self, samples: Sequence[Sample], tokenize: Tokenize | None) -> Batch:
        """`clip_tokens` int64 [B, T] and `tokens` int64 [B, L] (-100: padding) of one text of each sample."""
        texts = [choose_text(sample, self.config.text) for sample in samples]
        return {"clip_tokens": torch.as_tensor(self._clip.tokenizer(texts)), "tokens": self._encode(texts)}

    def losses(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        return {"caption": self.row_losses(model, batch).mean()}

    def row_losses(self, model: Any, batch: Batch) -> torch.Tensor:
        """By noise of the global generator."""
        with torch.no_grad():
            text = self._clip.model.encode_text(batch["clip_tokens"], normalize=True).float()  # type: ignore[operator]
        copies = text[:, None].expand(-1, model.config.regions, -1)
        return model.row_losses(with_noise(copies, self.config.variance, torch.randn_like(copies)), batch["tokens"])

    def tiny(self) -> tuple[TextCaptioner, Batch]:  # type: ignore[override]
        model = self.build(TINY_CAPTIONER)
        rng = np.random.default_rng(0)
        words = ("red", "blue", "green", "circle", "square", "star")
        samples = [
            Sample(key=f"{i:032x}", views={}, caption=" ".join(words[n] for n in rng.integers(0, 6, 3)), texts=(), epoch=0, seed=0) for i in range(8)
        ]
        return model, self.collate(samples, None)


TINY_CAPTIONER: dict[str, Any] = {
    "clip": "rendered_clip", "queries": 4, "heads": 2, "regions": 4,
    "lm": {
        "vocabulary": "rendered",
        "config": {"model_type": "opt", "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 1,
                   "max_position_embeddings": 192},
    },
}
