"""Which of a sample's texts is trained on: chosen at load time, by seeded draws, from all that the shards carry.

Shares by kind: Revisit (Lai et al. 2024, "Revisit Large-Scale Image-Caption Data in Pre-training Multimodal Foundation Models": a choice
per sample, a plain mixture beats fused text). Six modes: COSMO (Wang et al. 2024, released code). Complement: TL;DR (Wang et al. 2023,
"Too Large; Data Reduction for Vision-Language Pre-Training", released code: original + "; " + generated).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field

from stages.pretrain.errors import TrainError

ALT_TEXT = "alt_text"
CHOSEN = "caption"  # kind of a chosen caption that is none of the sample's texts, such as alt-text and caption joined
JOIN = " "
COMPLEMENT_JOIN = "; "

Mode = Literal[
    "caption", "random", "clean_only", "mixed", "clean_first", "clean_last", "clean_random", "noisy_only", "complement", "revisit_clip", "revisit_mllm"
]


def _shares(value: Mapping[str, float]) -> Mapping[str, float]:
    if not value or min(value.values()) < 0 or abs(sum(value.values()) - 1) > 1e-6:
        raise ValueError(f"shares by kind must be at least 0 and add up to 1, found {dict(value)}")
    return value


Shares = Annotated[dict[str, float], AfterValidator(_shares)]
TextMix = Mode | Shares

# [note] Shares that Revisit found best for CLIP and for MLLM pre-training, by the kinds that the caption recipes write.
REVISIT_CLIP: Mapping[str, float] = {ALT_TEXT: 0.5, "caption_short": 0.5}
REVISIT_MLLM: Mapping[str, float] = {"caption_dense": 0.66, ALT_TEXT: 0.34}
_NAMED: Mapping[Any, Mapping[str, float]] = {"revisit_clip": REVISIT_CLIP, "revisit_mllm": REVISIT_MLLM}

MIX_FIELD = Field(
    "caption",
    description="which text of a sample is trained on, drawn anew each epoch. caption: the chosen one; random: any; shares by kind, such as "
    "{alt_text: 0.5, caption_short: 0.5} (kinds that a sample lacks give their share to the others); Revisit's shares revisit_clip (alt_text 0.5, "
    "caption_short 0.5) and revisit_mllm (caption_dense 0.66, alt_text 0.34); COSMO's modes clean_only (a generated text), "
    "noisy_only (the alt-text), mixed (one or the other, half each), clean_first, clean_last and clean_random (both in one string); complement: "
    "alt-text + '; ' + generated text",
)


def mix_reads(mix: TextMix) -> tuple[str, ...]:
    """Text columns that a mix needs of each sample."""
    if mix == "caption":
        return ("caption",)
    return ("caption", "texts") if mix == "random" else ("caption", "texts", "kinds")


def mixed_text(mix: TextMix, caption: str, texts: Sequence[str], kinds: Sequence[str], rng: np.random.Generator) -> str:
    """The text to train on. `texts` and their `kinds` are equally long; a sample that has none of the kinds asked for gives `caption`."""
    if mix == "caption":
        return caption
    if not caption.strip() and texts:  # nothing but a text that was written for the image
        caption = texts[0]
    if len(texts) < 2:
        return caption
    if mix == "random":
        return texts[int(rng.integers(len(texts)))]
    shares = mix if isinstance(mix, Mapping) else _NAMED.get(mix)
    if isinstance(shares, Mapping):
        return _by_share(shares, caption, texts, kinds, rng)
    noisy = next((text for text, kind in zip(texts, kinds, strict=True) if kind == ALT_TEXT), None)
    generated = generated_texts(texts, kinds)
    clean = generated[int(rng.integers(len(generated)))] if generated else None
    if noisy is None or clean is None:
        return caption if mix not in ("clean_only", "noisy_only") else (clean if mix == "clean_only" else noisy) or caption
    return _joined(mix, noisy, clean, rng)


def generated_texts(texts: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """Texts that a stage wrote: neither alt-texts nor, where there are others, a chosen caption that is none of the texts (it may hold the alt-text)."""
    written = [(text, kind) for text, kind in zip(texts, kinds, strict=True) if kind != ALT_TEXT]
    return [text for text, kind in written if kind != CHOSEN] or [text for text, _ in written]


def check_mix(mix: TextMix, kinds: Collection[str], option: str = "text") -> None:
    """Raises TrainError for a mix of kinds that no text of the data is of: the other kinds would silently be all that is trained on."""
    shares = mix if isinstance(mix, Mapping) else _NAMED.get(mix)
    there = f"its texts are of the kinds {', '.join(sorted(kinds)) or '(none)'}"
    if shares is not None:
        for kind in (kind for kind, share in shares.items() if share > 0 and kind not in kinds):
            close = difflib.get_close_matches(kind, sorted(kinds), n=1)
            guess = f" (did you mean {close[0]!r}?)" if close else ""
            raise TrainError(f"option {option}: no text of the dataset is of kind {kind!r}{guess}; {there}")
    elif mix not in ("caption", "random", "noisy_only") and not set(kinds) - {ALT_TEXT}:
        raise TrainError(f"option {option}: {mix} asks for generated texts, and the dataset has none; {there}")


def _by_share(mix: Mapping[str, float], caption: str, texts: Sequence[str], kinds: Sequence[str], rng: np.random.Generator) -> str:
    """A kind drawn by its share among those that the sample has, then one of its texts."""
    at_hand = [kind for kind, share in mix.items() if share > 0 and kind in kinds]
    if not at_hand:
        return caption
    shares = np.array([mix[kind] for kind in at_hand])
    chosen = at_hand[int(rng.choice(len(at_hand), p=shares / shares.sum()))]
    of_kind = [text for text, kind in zip(texts, kinds, strict=True) if kind == chosen]
    return of_kind[int(rng.integers(len(of_kind)))]


def _joined(mode: str, noisy: str, clean: str, rng: np.random.Generator) -> str:
    if mode == "clean_only":
        return clean
    if mode == "noisy_only":
        return noisy
    if mode == "complement":
        return noisy + COMPLEMENT_JOIN + clean
    first = mode == "clean_first" or (mode != "clean_last" and rng.random() < 0.5)
    if mode == "mixed":
        return clean if first else noisy
    return JOIN.join((clean, noisy) if first else (noisy, clean))
