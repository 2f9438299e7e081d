"""Texts to token ids, with a memory of texts already seen (epochs repeat them)."""

from __future__ import annotations

import difflib
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

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Characters (start, end excluded) of `text` that each of its tokens stands for, in order; start and end token left out, and tokens cut off too.

        A token that the cleaning put in place of something else (an unescaped HTML entity) stands where that stood, or for no character, (0, 0).
        """
        tokenizer, found = self._tokenizer, []
        cleaned, origin = tokenizer.clean_fn(text), _origins(text, tokenizer.clean_fn(text))
        for match in tokenizer.pat.finditer(cleaned):
            pieces = tokenizer.bpe("".join(tokenizer.byte_encoder[byte] for byte in match[0].encode("utf-8"))).split(" ")
            of_byte = [match.start() + nth for nth, letter in enumerate(match[0]) for _ in letter.encode("utf-8")]
            at = 0
            for piece in pieces:
                stop = at + len(piece.removesuffix("</w>"))
                own = [place for nth in of_byte[at:stop] if (place := origin[nth]) is not None]
                found.append((min(own), max(own) + 1) if own else (0, 0))
                at = stop
        return found[: self.context_length - 2]

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        import torch

        return torch.tensor([self._ids(text) for text in texts], dtype=torch.long)


def _origins(text: str, cleaned: str) -> list[int | None]:
    """For each character of a cleaned text its place in the text: equal runs in order (None between them)."""
    lowered = [(letter, place) for place, whole in enumerate(text) for letter in whole.lower()]
    plain = "".join(letter for letter, _ in lowered)
    if plain == cleaned:
        return [place for _, place in lowered]
    origin: list[int | None] = [None] * len(cleaned)
    for a, b, size in difflib.SequenceMatcher(None, plain, cleaned.lower(), autojunk=False).get_matching_blocks():
        origin[b : b + size] = [place for _, place in lowered[a : a + size]]
    return origin


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
