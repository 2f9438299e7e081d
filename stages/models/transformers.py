"""Model kind `transformers`: the same multimodal language models without vLLM, in batches padded on the left.

In a recipe: `models: {mllm: {kind: transformers, weights: Qwen/Qwen2-VL-2B-Instruct}}`. `weights` is a folder in Hugging Face's format, a name of its
hub, or `bundled:NAME`. Further keys: revision, dtype (auto: float32 on CPU, bfloat16 on a GPU), max_model_len (4096), max_pixels (448 * 448),
device (auto, cpu, cuda), batch_size (16), threads (on CPU: 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from pipeline.errors import Fatal
from schemas.outcome import Failure, FailureCode
from stages.models.protocols import ChatAnswer, ChatRequest, Sampling, yes_share
from stages.models.rendering import Renderer, RenderError, number_ids, yes_no_ids
from stages.models.weights import DEFAULT_MAX_PIXELS, check_keys, engine_digest, local_weights, model_name, note_of, weights_identity

if TYPE_CHECKING:
    import torch

MACHINE_KEYS = frozenset({"batch_size"})
_KEYS = frozenset({"revision", "dtype", "max_model_len", "device", "batch_size", "threads"})


def identity(spec: Mapping[str, Any]) -> str:
    """What the weights are, without loading them. Raises RecipeError for an unknown key and for a folder that is no model."""
    check_keys(spec, _KEYS)
    return weights_identity(spec)


def load(spec: Mapping[str, Any]) -> TransformersChat:
    """Raises Fatal where the model cannot be loaded, RecipeError where the spec is wrong."""
    identity(spec)
    return TransformersChat(spec)


class TransformersChat:
    """Answers in batches of requests with equal sampling; a batch that raises is asked one by one, so that one request fails alone."""

    def __init__(self, spec: Mapping[str, Any]):
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = local_weights(spec)
        weights, revision = str(folder or spec["weights"]), spec.get("revision", "main")
        device = spec.get("device", "auto")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = spec.get("dtype", "auto")
        if dtype == "auto":
            dtype = "bfloat16" if device.startswith("cuda") else "float32"
        self.spec = spec
        self.version = metadata.version("transformers")
        self.digest = engine_digest(spec, "transformers", self.version, dtype)
        self.batch_size = int(spec.get("batch_size", 16))
        self.max_model_len = int(spec.get("max_model_len", 4096))
        self.threads = int(spec.get("threads", 1))
        try:
            self.processor = AutoProcessor.from_pretrained(weights, revision=revision)
            self.model = AutoModelForImageTextToText.from_pretrained(weights, revision=revision, dtype=getattr(torch, dtype)).eval().to(device)
        except (OSError, ValueError, RuntimeError) as error:
            raise Fatal(f"models: transformers could not load {weights}: {error}") from error
        self.renderer = Renderer(self.processor)
        self.tokenizer = self.renderer.tokenizer
        self._number_ids = number_ids(self.tokenizer)
        self._yes_no_ids = yes_no_ids(self.tokenizer)

    def describe(self) -> dict[str, Any]:
        max_pixels = int(self.spec.get("max_pixels", DEFAULT_MAX_PIXELS))
        name = model_name(self.spec)
        facts = {"kind": "transformers", "name": name, "engine": "transformers", "engine_version": self.version}
        return facts | {"max_pixels": max_pixels, "note": note_of(self.spec)}

    def chat(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer | Failure]:
        """Answers in the order of the requests."""
        answers: list[ChatAnswer | Failure | None] = [None] * len(requests)
        prompts: dict[int, str] = {}
        for place, request in enumerate(requests):
            try:
                prompts[place] = self.renderer.render(request.system, request.text, request.image is not None).text
            except RenderError as error:
                answers[place] = Failure(FailureCode.BAD_ROW, str(error))
        for batch in self._batches(requests, list(prompts)):
            for place, answer in zip(batch, self._isolated([requests[at] for at in batch], [prompts[at] for at in batch]), strict=True):
                answers[place] = answer
        return [answer for answer in answers if answer is not None]

    def _batches(self, requests: Sequence[ChatRequest], places: list[int]) -> list[list[int]]:
        """Places that go together: equal options but the seed, all with an image or none, at most `batch_size`."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for place in places:
            sampling = requests[place].sampling
            kind = (sampling.max_tokens, sampling.min_tokens, sampling.temperature, sampling.top_p, sampling.choices, requests[place].image is None)
            groups.setdefault(kind, []).append(place)
        return [group[start : start + self.batch_size] for group in groups.values() for start in range(0, len(group), self.batch_size)]

    def _isolated(self, requests: list[ChatRequest], prompts: list[str]) -> list[ChatAnswer | Failure]:
        try:
            return self._generate(requests, prompts)
        except (ValueError, IndexError) as error:  # what processors raise on an image or a prompt that does not fit
            if len(requests) == 1:
                return [Failure(FailureCode.MODEL_ERROR, f"{type(error).__name__}: {error}")]
            return [answer for at in range(len(requests)) for answer in self._isolated(requests[at : at + 1], prompts[at : at + 1])]

    def _generate(self, requests: list[ChatRequest], prompts: list[str]) -> list[ChatAnswer | Failure]:
        import torch
        from PIL import Image

        from stages.models.drawing import Allowed, Draw

        sampling = requests[0].sampling
        images = None
        if requests[0].image is not None:  # not as arrays: of a very narrow one the processors guess wrong which side the colours are
            images = [[Image.fromarray(request.image)] for request in requests if request.image is not None]
        inputs = self.processor(text=prompts, images=images, padding=True, padding_side="left", return_tensors="pt").to(self.model.device)
        lengths = inputs["attention_mask"].sum(1).tolist()
        longest = max(lengths)
        if longest + sampling.max_tokens > self.max_model_len:
            raise ValueError(f"prompt of {longest} tokens and {sampling.max_tokens} to come are more than max_model_len {self.max_model_len}")
        processors: list[Any] = []
        if sampling.choices:
            processors.append(Allowed(self.tokenizer, sampling.choices, inputs["input_ids"].shape[1]))
        if sampling.temperature > 0:
            processors.append(Draw(sampling.temperature, sampling.top_p, [request.sampling.seed or 0 for request in requests]))
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                made = self.model.generate(
                    **inputs, max_new_tokens=sampling.max_tokens, min_new_tokens=sampling.min_tokens or None, do_sample=False,
                    logits_processor=processors, return_dict_in_generate=True,
                    output_logits=any(request.sampling.numbers or request.sampling.yes_no for request in requests), temperature=None, top_p=None, top_k=None,
                )  # fmt: skip
        finally:
            torch.set_num_threads(threads)
        new = made.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        first = made.logits[0] if made.logits else None
        return [
            self._answer(ids, request.sampling, length, first[at] if first is not None else None)
            for at, (ids, length, request) in enumerate(zip(new, lengths, requests, strict=True))
        ]

    def _answer(self, ids: list[int], sampling: Sampling, prompt_tokens: int, logits: torch.Tensor | None) -> ChatAnswer:
        ends = self.model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        stop = next((at for at, token in enumerate(ids) if token in ends), None)
        kept = ids if stop is None else ids[:stop]
        numbers = self._probabilities(logits) if logits is not None and sampling.numbers else None
        yes = self._yes(logits) if logits is not None and sampling.yes_no else None
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        return ChatAnswer(text, len(kept) + (stop is not None), "length" if stop is None else "stop", prompt_tokens, numbers, yes)

    def _yes(self, logits: torch.Tensor) -> float | None:
        chances = logits.float().softmax(-1)
        return yes_share((word, float(chances[token])) for token, word in self._yes_no_ids.items())

    def _probabilities(self, logits: torch.Tensor) -> dict[int, float]:
        """Probability of each number as first token; a number with and one without a space before it count together."""
        if not self._number_ids:
            raise Fatal("models: the tokenizer splits numbers into several tokens, so they have no probability as one; switch `expectation` off")
        probabilities = logits.float().softmax(-1)
        found: dict[int, float] = {}
        for token, number in self._number_ids.items():
            found[number] = found.get(number, 0.0) + float(probabilities[token])
        return found
