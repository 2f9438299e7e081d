"""What `expectation` of mllm_score costs where a tokenizer splits numbers: the same scores asked with and without it, of one vLLM engine.

The model is a Qwen2-VL made from a config whose answers are digits for the most part, in no order that means anything: its probabilities are far flatter than
those of a model that scores, so that it is asked for more beginnings than a real one. Each way has images of its own. Prints one JSON line: seconds, further
requests per score, prompt tokens per score, and the share of all prompt tokens that the engine found in its prefix cache.
Run: python tests/bench/bench_expectation.py [--images 300] [--side 160]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mllm_bench import MEDIUM, MEDIUM_VISION, prompt_words, vllm_spec  # noqa: E402

from pipeline.models import LocalModel, local_model  # noqa: E402
from stages import prompts  # noqa: E402
from stages.models.protocols import ChatRequest, Sampling, image_digest  # noqa: E402
from tests.stages.models.tiny_qwen2_vl import save_tiny_qwen2_vl  # noqa: E402


def requests(first: int, images: int, side: int, numbers: bool) -> list[ChatRequest]:
    """One score for each of `images` pictures."""
    import numpy as np

    prompt = prompts.load("score_semantic_understanding")
    made = []
    for number in range(first, first + images):
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
        text = prompt.render(alt_text=f"a red dog, number {number}")
        made.append(ChatRequest(prompt.system, text, pixels, image_digest(pixels), Sampling(4, numbers=numbers)))
    return made


def measured(handle: LocalModel, asked: list[ChatRequest]) -> dict[str, float]:
    """Seconds and tokens of all requests, as many in flight as in a run."""
    engine = handle.model
    read, found = engine.prompt_tokens, engine.cached_tokens
    started = time.perf_counter()
    answers = [answer for future in [handle.send("chat", [one]) for one in asked] for answer in future.result()]
    seconds, read, found = time.perf_counter() - started, engine.prompt_tokens - read, engine.cached_tokens - found
    answered = sum(answer.n_tokens for answer in answers)
    return {"seconds": round(seconds, 2), "answer_tokens": answered, "prompt_tokens_per_score": round(read / len(asked), 1), "cached": round(found / read, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--side", type=int, default=160, help="pixels of an image's side")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory(prefix="pairmill-expectation-bench-") as name:
        save_tiny_qwen2_vl(Path(name), 0, MEDIUM, MEDIUM_VISION, prompt_words(), 512, digits=True)
        handle = local_model(vllm_spec(Path(name), max_num_seqs=64))
        measured(handle, requests(0, 20, options.side, True))
        ways = {numbers: measured(handle, requests(1000 * (1 + numbers), options.images, options.side, numbers)) for numbers in (False, True)}
        handle.model.close()
    more = (ways[True]["answer_tokens"] - ways[False]["answer_tokens"]) / options.images
    line = {"bench": "expectation", "images": options.images, "side": options.side, "without": ways[False], "with": ways[True]}
    print(json.dumps({**line, "further_requests_per_score": round(more, 2), "ratio": round(ways[True]["seconds"] / ways[False]["seconds"], 3)}))


if __name__ == "__main__":
    main()
