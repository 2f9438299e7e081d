"""The caption stage through pairmill against a bare offline vLLM script: output tokens per second, engine start excluded on both sides.

Both read the same webdataset tars, decode the same JPEGs, and ask the same question in the same engine (kind vllm, a Qwen2-VL made from a
config) with answers of a fixed length. pairmill's time is that of the whole run, from the lock to the last commit: source, read_images (which stores
the images) and caption; loading the tokenizer that counts captions belongs to the start, as loading its own does on the bare side. The bare side
decodes with Pillow and hands all prompts to vLLM at once. Each side is a process of its own.
Prints one JSON line; `--executor ray` lets the engine live in an actor. `--overhead` asks the fake engine, which answers at once: what is left
is the processor time that pairmill adds.
Run: python tests/bench/bench_captions.py [--images 2000] [--side 64] [--tokens 24] [--repeats 1] [--weights FOLDER] [--executor local|ray] [--overhead]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mllm_bench import MEDIUM, MEDIUM_VISION, as_process, cpu_seconds, cpu_since, make_model, vllm_spec, write_tars  # noqa: E402

PROMPT = "Describe the image in one short phrase."


def bare(spec: dict[str, Any], folder: Path, tokens: int) -> dict[str, Any]:
    """Read, decode and caption all images with vLLM's offline class."""
    import io

    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(spec["kv_cache_gb"])
    from PIL import Image
    from transformers import AutoProcessor
    from vllm import LLM, SamplingParams

    from stages import prompts

    llm = LLM(
        spec["weights"], dtype=spec["dtype"], max_model_len=spec["max_model_len"], max_num_seqs=spec["max_num_seqs"], enforce_eager=True,
        block_size=spec["block_size"], limit_mm_per_prompt={"image": 1, "video": 0}, mm_processor_cache_gb=1, disable_log_stats=True,
    )  # fmt: skip
    processor = AutoProcessor.from_pretrained(spec["weights"])
    user = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    messages = [{"role": "system", "content": [{"type": "text", "text": prompts.load("caption_short").system}]}, {"role": "user", "content": user}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    sampling = SamplingParams(temperature=0, max_tokens=tokens, min_tokens=tokens)
    used, started = cpu_seconds(), time.perf_counter()
    asked = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    image = Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB")  # type: ignore[union-attr]
                    asked.append({"prompt": text, "multi_modal_data": {"image": image}})
    answers = llm.generate(asked, sampling, use_tqdm=False)
    seconds = time.perf_counter() - started
    made = sum(len(answer.outputs[0].token_ids) for answer in answers)
    found = {"seconds": round(seconds, 2), "tokens": made, "tokens_per_s": round(made / seconds, 1), "prompt_tokens": len(answers[0].prompt_token_ids)}
    return found | cpu_since(used)


def through_pairmill(spec: dict[str, Any], folder: Path, tokens: int, executor: str) -> dict[str, Any]:
    """A whole run with its engine started before."""
    from pipeline.models import local_model
    from pipeline.recipe import build_recipe
    from pipeline.run import RunOptions, run
    from stages.caption import clip_tokens

    recipe = build_recipe(
        {
            "name": "captions", "input": {"kind": "webdataset_tars", "tars": str(folder)}, "models": {"mllm": spec},
            "stages": ["read_images", {"caption": {"prompt_text": PROMPT, "max_tokens": tokens, "min_tokens": tokens}}],
        }
    )  # fmt: skip
    if executor == "local":
        local_model(spec)
        clip_tokens("loads the tokenizer that counts captions")
    with tempfile.TemporaryDirectory(prefix="pairmill-captions-") as out:
        used, started = cpu_seconds(), time.perf_counter()
        result = run(recipe, out, RunOptions(executor=executor))
        seconds = time.perf_counter() - started
    tally = result.tally
    made = tally.calls["caption"] * tokens
    found = {"seconds": round(seconds, 2), "tokens": made, "tokens_per_s": round(made / seconds, 1), "executor": executor}
    found |= {"model_seconds": round(tally.model_seconds["caption"], 2), "stage_seconds": round(tally.seconds["caption"], 2)}
    if executor == "local":
        found |= cpu_since(used)
    else:  # its engine starts within the run: what counts is the time in which the engine had work
        found["tokens_per_s"] = round(made / tally.model_seconds["caption"], 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=64, help="pixels of a JPEG's side")
    parser.add_argument("--tokens", type=int, default=24, help="tokens of each answer")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--weights", default="", help="another model's folder; default: one of 50 M parameters from a config")
    parser.add_argument("--executor", choices=("local", "ray"), default="local")
    parser.add_argument("--overhead", action="store_true", help="pairmill alone, with the fake engine")
    parser.add_argument("--only", nargs=2, metavar=("SIDE", "FOLDER"), help="one side, as the bench calls itself")
    options = parser.parse_args()
    if options.only:
        side, folder = options.only[0], Path(options.only[1])
        spec = vllm_spec(Path(options.weights or folder / "model"), max_num_seqs=64, block_size=32)
        made = bare(spec, folder / "tars", options.tokens) if side == "bare" else through_pairmill(spec, folder / "tars", options.tokens, options.executor)
        print(json.dumps(made))
        return
    with tempfile.TemporaryDirectory(prefix="pairmill-captions-bench-") as name:
        folder = Path(name)
        if options.overhead:
            write_tars(folder / "tars", options.images, options.side)
            made = through_pairmill({"kind": "fake", "concurrency": 128}, folder / "tars", options.tokens, "local")
            print(json.dumps({"bench": "captions", "images": options.images, "side": options.side, "overhead": made}))
            return
        parameters = None if options.weights else make_model(folder / "model", MEDIUM, MEDIUM_VISION, 512)
        write_tars(folder / "tars", options.images, options.side)
        arguments = ["--tokens", str(options.tokens), "--executor", options.executor, *(["--weights", options.weights] if options.weights else [])]
        found: dict[str, list[dict[str, Any]]] = {"bare": [], "pairmill": []}
        for _ in range(options.repeats):
            for side, results in found.items():
                results.append(as_process(__file__, ["--only", side, name, *arguments]))
    ratios = [round(ours["tokens_per_s"] / theirs["tokens_per_s"], 3) for ours, theirs in zip(found["pairmill"], found["bare"], strict=True)]
    line = {"bench": "captions", "images": options.images, "side": options.side, "tokens": options.tokens, "parameters": parameters, **found}
    print(json.dumps({**line, "ratios": ratios, "median_ratio": statistics.median(ratios)}))


if __name__ == "__main__":
    main()
