"""Model kind `causal_lm`: a language model that reads texts and tells how likely they are, through transformers; it writes nothing.

In a recipe: `models: {lm: {kind: causal_lm, weights: openai-community/gpt2-large}}`. `weights` is a folder in Hugging Face's format or a name of its
hub (`revision` with it). Further keys: device (auto, cpu, cuda), dtype (auto: float32 on CPU, float16 on a GPU), batch_size (texts that the model sees
at once, 32), max_tokens (more of a text is not read, 512), threads (on CPU: 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from pipeline.errors import Fatal, RecipeError
from stages.models import weights as weights_files
from stages.models.weights import check_keys, device_of, engine_digest, local_weights, model_name, weights_identity

METHOD = "perplexity"
MACHINE_KEYS = frozenset({"batch_size"})
MAX_TOKENS = 512
MOST_NATS = 80.0  # per token; more would be infinite in float32, which JSON cannot hold
_KEYS = frozenset({"revision", "device", "dtype", "batch_size", "max_tokens", "threads"})
_DTYPES = ("auto", "float32", "float16", "bfloat16")


def identity(spec: Mapping[str, Any]) -> str:
    """What the weights are, without loading them. Raises RecipeError for an unknown key, a wrong value, and a folder that is no model."""
    check_keys(spec, _KEYS)
    if spec.get("dtype", "auto") not in _DTYPES:
        raise RecipeError(f"models: dtype {spec['dtype']!r} is none of {', '.join(_DTYPES)}")
    for key, lowest in (("max_tokens", 2), ("batch_size", 1), ("threads", 1)):
        if not isinstance(spec.get(key, lowest), int) or spec.get(key, lowest) < lowest:
            raise RecipeError(f"models: {key} of a causal_lm must be a whole number of at least {lowest}, found {spec[key]!r}")
    return weights_identity(spec)


def availability(spec: Mapping[str, Any]) -> tuple[str, str, str]:
    """Whether the weights are at hand, loading none, as `weights.availability`."""
    identity(spec)
    return weights_files.availability(spec)


def load(spec: Mapping[str, Any]) -> CausalLm:
    """Raises Fatal where the model cannot be loaded or fetched, RecipeError where the spec is wrong."""
    identity(spec)
    return CausalLm(spec)


class CausalLm:
    """Likelihoods of texts under a language model.

    A text begins behind the tokenizer's start token where it has one (GPT-2's is its end of text), so that its first token counts too; without one
    the first token is only read.
    """

    def __init__(self, spec: Mapping[str, Any]):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = local_weights(spec)
        source, revision = str(folder or spec["weights"]), spec.get("revision", "main")
        device = device_of(spec)
        dtype = spec.get("dtype", "auto")
        if dtype == "auto":
            dtype = "float16" if device.startswith("cuda") else "float32"
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
            self.model = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=getattr(torch, dtype)).eval().to(device)
        except (OSError, ValueError, RuntimeError) as error:
            raise Fatal(f"models: transformers could not load a language model from {source}: {error}") from error
        self.spec, self.batch_size, self.threads = spec, int(spec.get("batch_size", 32)), int(spec.get("threads", 1))
        places = getattr(self.model.config, "max_position_embeddings", None) or MAX_TOKENS
        self.max_tokens = min(int(spec.get("max_tokens", MAX_TOKENS)), places - 1)
        self.digest = engine_digest(spec, "transformers", metadata.version("transformers"), dtype, self.max_tokens)

    def describe(self) -> dict[str, Any]:
        return {"kind": "causal_lm", "name": model_name(self.spec), "max_tokens": self.max_tokens}

    def perplexity(self, texts: Sequence[str]) -> list[tuple[float | None, int]]:
        """Perplexity exp(-(1/t) sum log p(x_i | x_<i)) of each text and t, the tokens that count; None where none does."""
        start = self.tokenizer.bos_token_id
        head = [] if start is None else [start]
        ids = [head + list(row)[: self.max_tokens] for row in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []
        found: list[tuple[float | None, int]] = [(None, 0)] * len(ids)
        readable = sorted((at for at in range(len(ids)) if len(ids[at]) > 1), key=lambda at: (len(ids[at]), at))
        for first in range(0, len(readable), self.batch_size):  # of like lengths, so that little is padding
            places = readable[first : first + self.batch_size]
            for at, loss in zip(places, self._losses([ids[at] for at in places]), strict=True):
                count = len(ids[at]) - 1
                found[at] = (math.exp(min(MOST_NATS, loss / count)), count)
        return found

    def _losses(self, ids: list[list[int]]) -> list[float]:
        """Sum of -log p over all tokens but the first of each row, in nats."""
        import torch

        longest = max(map(len, ids))
        device = self.model.device
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in ids], device=device)
        there = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=device)
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                logits = self.model(input_ids=tokens, attention_mask=there).logits[:, :-1].float()
                losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
                summed: list[float] = (losses.double() * there[:, 1:]).sum(dim=1).tolist()
        finally:
            torch.set_num_threads(threads)
        return summed
