"""Texts to token ids, with a memory of texts already seen (epochs repeat them)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Tokenizer = Callable[[Sequence[str]], "torch.Tensor"]


class CachedTokenizer:
    """open_clip's SimpleTokenizer at a fixed context length, remembering up to `remember` texts.

    Called with N texts it gives int64 [N, context_length]: start, tokens, end, zeros; longer texts are cut and keep
    the end token. The ids are those of open_clip's tokenizer (its cleaning of a text is what costs most).
    """

    def __init__(self, context_length: int, remember: int = 200_000, **options: Any) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self._tokenizer = SimpleTokenizer(context_length=context_length, **options)
        self.context_length = context_length
        self._ids = lru_cache(maxsize=remember)(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer([text])[0].tolist())

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        import torch

        return torch.tensor([self._ids(text) for text in texts], dtype=torch.long)


def tokenizer_for(model_cfg: dict[str, Any], source: str = "") -> Tokenizer:
    """The tokenizer that an open_clip model config asks for.

    `source` is the open_clip name of the model ('ViT-B-32', 'local-dir:...', 'hf-hub:...'), needed where the config
    names a tokenizer of its own (transformers, SigLIP); everything else uses CLIP's byte-pair vocabulary.
    """
    text_cfg = model_cfg.get("text_cfg", {})
    context_length = text_cfg.get("context_length", 77)
    if text_cfg.get("hf_tokenizer_name") or "siglip" in source.lower():
        import open_clip

        return open_clip.get_tokenizer(source, context_length=context_length)
    return CachedTokenizer(context_length, **(text_cfg.get("tokenizer_kwargs") or {}))
