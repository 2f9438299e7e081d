"""Steps on logits for transformers' generate: draws that depend on a request's own seed, and answers out of a given list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor


class Draw(LogitsProcessor):
    """Sampling by temperature and nucleus, done so that greedy search over the result is the draw.

    Noise after Gumbel is added to each row's log probabilities from the row's own generator: the largest sum is a draw from the
    distribution, and a row's draws do not depend on what shares its batch.
    """

    def __init__(self, temperature: float, top_p: float, seeds: Sequence[int]):
        self.temperature = temperature
        self.top_p = top_p
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chances = (scores.float() / self.temperature).softmax(-1)
        if self.top_p < 1:
            ordered, places = chances.sort(-1, descending=True)
            outside = ordered.cumsum(-1) - ordered >= self.top_p
            chances = chances.masked_fill(outside.scatter(-1, places, outside), 0.0)
        uniform = torch.stack([torch.rand(chances.shape[-1], generator=generator) for generator in self.generators])
        noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        return chances.log() + noise.to(chances.device)


class Allowed(LogitsProcessor):
    """Lets through only tokens that go on to one of the choices; a choice that is complete ends."""

    def __init__(self, tokenizer: Any, choices: Sequence[str], start: int):
        self.start = start
        self.end = tokenizer.eos_token_id
        self.choices = [[*tokenizer(choice, add_special_tokens=False)["input_ids"], self.end] for choice in choices]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        masked = torch.full_like(scores, float("-inf"))
        for row, ids in enumerate(input_ids[:, self.start :].tolist()):
            wanted = {choice[len(ids)] for choice in self.choices if choice[: len(ids)] == ids and len(choice) > len(ids)} or {self.end}
            places = sorted(wanted)
            masked[row, places] = scores[row, places]
        return masked
