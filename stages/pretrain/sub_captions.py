"""Sub-captions of long captions, drawn anew each epoch: DreamLIP (Zheng et al. 2024, arXiv 2403.17007; sampling as in the released loader).

Sentences are split when a sample is loaded, never stored. The released loader draws from all sentences but the last; here every one may be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.text.sentences import SplitMode, split_sentences

FIDELITY_JOIN = ". "


def sub_captions(captions: Sequence[str], merged: int = 1, mode: SplitMode = "sentences") -> list[str]:
    """All sentences of all captions in order; with `merged` m every run of m adjacent sentences of one caption (a shorter caption whole)."""
    found = []
    for caption in captions:
        sentences = split_sentences(caption, mode)
        join = FIDELITY_JOIN if mode == "fidelity" else " "
        found += [join.join(sentences[at : at + merged]) for at in range(max(1, len(sentences) - merged + 1))] if sentences else []
    return found


def sampled_texts(
    raw: str, captions: Sequence[str], count: int, rng: np.random.Generator, merged: int = 1, mode: SplitMode = "sentences"
) -> list[str]:
    """[raw] + `count` sub-captions drawn uniformly: without replacement if there are at least as many, else with.

    Always 1 + `count` texts, so that samples can be stacked; where there is no sentence, raw stands in for each. raw is the alt-text,
    `captions` the generated texts of the sample; `rng` a generator of (seed, epoch, key).
    """
    pool = sub_captions(captions, merged, mode) or [raw]
    drawn = rng.choice(len(pool), size=count, replace=len(pool) < count)
    return [raw, *(pool[int(at)] for at in drawn)]
