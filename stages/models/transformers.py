"""Model kind `transformers`: the same multimodal language models without vLLM, in batches padded on the left.

In a recipe: `models: {mllm: {kind: transformers, weights: Qwen/Qwen2-VL-2B-Instruct}}`. `weights` is a folder in Hugging Face's format, a name of its
hub, or `bundled:NAME`. Further keys: revision, dtype (auto: float32 on CPU, bfloat16 on a GPU), max_model_len (4096), max_pixels (448 * 448),
device (auto, cpu, cuda), batch_size (16), threads (on CPU: 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from pipeline.errors import Fatal
from schemas.outcome import Failure, FailureCode
from stages.models import weights as weights_files
from stages.models.numbers import Walk, number_tree
from stages.models.protocols import ChatAnswer, ChatRequest, Sampling, yes_share
from stages.models.rendering import RenderError, yes_no_ids
from stages.models.weights import DEFAULT_MAX_PIXELS, check_keys, device_of, engine_digest, load_renderer, local_weights, model_name, note_of, weights_identity

if TYPE_CHECKING:
    import torch

METHOD = "chat"
MACHINE_KEYS = frozenset({"batch_size"})
_TOKEN_KINDS = ("token_type_ids", "mm_token_type_ids")  # what a token is, in the inputs of some models; 0 is text
_KEYS = frozenset({"revision", "dtype", "max_model_len", "device", "batch_size", "threads"})


def identity(spec: Mapping[str, Any]) -> str:
    """What the weights are, without loading them. Raises RecipeError for an unknown key and for a folder that is no model."""
    check_keys(spec, _KEYS)
    return weights_identity(spec)


def availability(spec: Mapping[str, Any]) -> tuple[str, str, str]:
    """Whether the weights are at hand, loading none, as `weights.availability`."""
    identity(spec)
    return weights_files.availability(spec)


def load(spec: Mapping[str, Any]) -> TransformersChat:
    """Raises Fatal where the model cannot be loaded, RecipeError where the spec is wrong."""
    identity(spec)
    return TransformersChat(spec)


class TransformersChat:
    """Answers in batches of requests with equal sampling; a batch that raises is asked one by one, so that one request fails alone."""

    def __init__(self, spec: Mapping[str, Any]):
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForImageTextToText

        folder = local_weights(spec)
        weights, revision = str(folder or spec["weights"]), spec.get("revision", "main")
        device = device_of(spec)
        dtype = spec.get("dtype", "auto")
        if dtype == "auto":
            dtype = "bfloat16" if device.startswith("cuda") else "float32"
        self.spec = spec
        self.version = metadata.version("transformers")
        self.digest = engine_digest(spec, "transformers", self.version, dtype)
        self.batch_size = int(spec.get("batch_size", 16))
        self.max_model_len = int(spec.get("max_model_len", 4096))
        self.threads = int(spec.get("threads", 1))
        self.renderer = load_renderer(weights, str(revision))
        self.processor = self.renderer.processor
        try:
            self.model = AutoModelForImageTextToText.from_pretrained(weights, revision=revision, dtype=getattr(torch, dtype)).eval().to(device)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise Fatal(f"models: transformers could not load {weights}: {error}") from error
        self.tokenizer = self.renderer.tokenizer
        self._numbers_tree = number_tree(self.tokenizer)
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
        from stages.models.drawing import Allowed, Draw

        sampling = requests[0].sampling
        inputs = self._inputs(requests, prompts)
        lengths = inputs["attention_mask"].sum(1).tolist()
        longest = max(lengths)
        if longest + sampling.max_tokens > self.max_model_len:
            raise ValueError(f"prompt of {longest} tokens and {sampling.max_tokens} to come are more than max_model_len {self.max_model_len}")
        processors: list[Any] = []
        if sampling.choices:
            processors.append(Allowed(self.tokenizer, sampling.choices, inputs["input_ids"].shape[1]))
        if sampling.temperature > 0:
            processors.append(Draw(sampling.temperature, sampling.top_p, [request.sampling.seed or 0 for request in requests]))
        told = any(request.sampling.numbers or request.sampling.yes_no for request in requests)
        made = self._run(inputs, told, max_new_tokens=sampling.max_tokens, min_new_tokens=sampling.min_tokens or None, logits_processor=processors)
        new = made.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        first = made.logits[0] if made.logits else None
        numbers = self._numbers(requests, prompts, lengths, first)
        return [
            self._answer(ids, request.sampling, length, first[at] if first is not None else None, numbers[at])
            for at, (ids, length, request) in enumerate(zip(new, lengths, requests, strict=True))
        ]

    def _inputs(self, requests: list[ChatRequest], prompts: list[str]) -> Any:
        """The model's inputs, padded on the left."""
        from PIL import Image

        images = None
        if requests[0].image is not None:  # not as arrays: of a very narrow one the processors guess wrong which side the colours are
            images = [[Image.fromarray(request.image)] for request in requests if request.image is not None]
        return self.processor(text=prompts, images=images, padding=True, padding_side="left", return_tensors="pt").to(self.model.device)

    def _run(self, inputs: Any, logits: bool, **options: Any) -> Any:
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                return self.model.generate(
                    **inputs, **options, do_sample=False, return_dict_in_generate=True, output_logits=logits, temperature=None, top_p=None, top_k=None
                )
        finally:
            torch.set_num_threads(threads)

    def _numbers(self, requests: list[ChatRequest], prompts: list[str], lengths: list[int], first: torch.Tensor | None) -> list[_Numbers | None]:
        """The numbers' probabilities of those requests that ask for them. Numbers of several tokens: the batch again with digits behind the prompts."""
        asking = [at for at, request in enumerate(requests) if request.sampling.numbers]
        if asking and not self._numbers_tree.tokens_after(()):
            raise Fatal("models: the tokenizer cannot tell the numbers 0 to 100 apart; switch `expectation` off")
        found = {at: _Numbers(Walk(self._numbers_tree)) for at in asking}
        for at in asking:
            assert first is not None
            found[at].walk.put((), self._chances(first[at], ()))
        while due := [(at, path) for at in asking for path in found[at].walk.due()]:
            for length in sorted({len(path) for _, path in due}):  # a batch has paths of one length
                group = [(at, path) for at, path in due if len(path) == length]
                for batch in (group[start : start + self.batch_size] for start in range(0, len(group), self.batch_size)):
                    after = self._after([(requests[at], prompts[at], path) for at, path in batch])
                    for (at, path), logits in zip(batch, after, strict=True):
                        found[at].walk.put(path, self._chances(logits, path))
                        found[at].n_tokens += 1
                        found[at].prompt_tokens += lengths[at] + length
        return [found.get(at) for at in range(len(requests))]

    def _after(self, asked: list[tuple[ChatRequest, str, tuple[int, ...]]]) -> torch.Tensor:
        """Logits [N, vocabulary] after each prompt and the tokens behind it."""
        import torch

        inputs = self._inputs([request for request, _, _ in asked], [prompt for _, prompt, _ in asked])
        behind = torch.tensor([path for _, _, path in asked], device=self.model.device)
        shape = inputs["input_ids"].shape
        if shape[1] + behind.shape[1] + 1 > self.max_model_len:
            raise ValueError(f"prompt of {shape[1]} tokens and the {behind.shape[1] + 1} of a number are more than max_model_len {self.max_model_len}")
        fillings = {"input_ids": behind, "attention_mask": torch.ones_like(behind), **dict.fromkeys(_TOKEN_KINDS, torch.zeros_like(behind))}
        for name in fillings.keys() & inputs.keys():
            inputs[name] = torch.cat([inputs[name], fillings[name].to(inputs[name].dtype)], 1)
        return self._run(inputs, True, max_new_tokens=1).logits[0]

    def _chances(self, logits: torch.Tensor, path: tuple[int, ...]) -> list[tuple[int, float]]:
        """Probabilities of the tokens that a number may go on with."""
        probabilities = logits.float().softmax(-1)
        return [(token, float(probabilities[token])) for token in self._numbers_tree.tokens_after(path)]

    def _answer(self, ids: list[int], sampling: Sampling, prompt_tokens: int, logits: torch.Tensor | None, numbers: _Numbers | None) -> ChatAnswer:
        ends = self.model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        stop = next((at for at, token in enumerate(ids) if token in ends), None)
        kept = ids if stop is None else ids[:stop]
        yes = self._yes(logits) if logits is not None and sampling.yes_no else None
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        n_tokens, found = len(kept) + (stop is not None), None
        if numbers is not None:
            n_tokens, prompt_tokens, found = n_tokens + numbers.n_tokens, prompt_tokens + numbers.prompt_tokens, numbers.walk.found
        return ChatAnswer(text, n_tokens, "length" if stop is None else "stop", prompt_tokens, found, yes)

    def _yes(self, logits: torch.Tensor) -> float | None:
        chances = logits.float().softmax(-1)
        return yes_share((word, float(chances[token])) for token, word in self._yes_no_ids.items())


@dataclass
class _Numbers:
    """One request's walk, and the tokens that it cost beyond the answer."""

    walk: Walk
    n_tokens: int = 0
    prompt_tokens: int = 0
