"""What the benchmarks of MLLM engines share: a model made from a config, tars of distinct JPEGs, one part of a bench as a process of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from stages import prompts  # noqa: E402
from tests.stages.models.tiny_qwen2_vl import WORDS, save_tiny_qwen2_vl  # noqa: E402

MEDIUM = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
MEDIUM_VISION = {"depth": 4, "embed_dim": 256, "num_heads": 4, "mlp_ratio": 4}


def prompt_words() -> str:
    """The texts of all prompts, so that a tokenizer made on them needs as few tokens for a prompt as one of a real model."""
    return " ".join([WORDS, prompts.load("caption_short").system, *(prompts.load(name).user for name in prompts.names())])


def make_model(folder: Path, text: dict[str, int], vision: dict[str, int], longest: int) -> int:
    """Save a random Qwen2-VL; returns its number of parameters."""
    from transformers import AutoModelForImageTextToText

    save_tiny_qwen2_vl(folder, 0, text, vision, prompt_words(), longest)
    return int(sum(one.numel() for one in AutoModelForImageTextToText.from_pretrained(folder).parameters()))


def jpeg(number: int, side: int) -> bytes:
    """A JPEG of side x side pixels with smooth structure and a place and colour of its own."""
    coarse = np.random.default_rng(number).integers(0, 256, (max(2, side // 16), max(2, side // 16), 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def write_tars(folder: Path, images: int, side: int, per_tar: int = 1000) -> list[Path]:
    """Webdataset tars: an image and its text for each key."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for start in range(0, images, per_tar):
        made.append(folder / f"{start // per_tar:05}.tar")
        with tarfile.open(made[-1], "w") as tar:
            for number in range(start, min(images, start + per_tar)):
                for name, data in ((f"{number:08}.jpg", jpeg(number, side)), (f"{number:08}.txt", f"a red dog, number {number}".encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return made


def vllm_spec(weights: Path, **options: Any) -> dict[str, Any]:
    """Entry of a recipe's models table; the bare script takes the same options."""
    return {"kind": "vllm", "weights": str(weights), "dtype": "float32", "max_model_len": 1024, "enforce_eager": True, "kv_cache_gb": 1, **options}


def cpu_seconds() -> dict[str, float]:
    """Processor seconds so far of the engine's processes and of all others of this process's tree: less touched by other work on the machine
    than times by the clock. Processes that have ended are not counted."""
    used = {"engine": 0.0, "other": 0.0}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            times, name = process.cpu_times(), process.name()
        except psutil.Error:
            continue
        used["engine" if name.startswith("VLLM") else "other"] += times.user + times.system
    return used


def cpu_since(before: dict[str, float]) -> dict[str, float]:
    now = cpu_seconds()
    return {f"{who}_cpu_s": round(now[who] - before[who], 2) for who in before}


def as_process(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run this interpreter on a script, which prints one line of JSON (engines print lines too): a fresh process and a fresh engine."""
    env = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True, env=env, check=False)
    if done.returncode:
        raise SystemExit(f"{Path(script).name} {' '.join(arguments)} ended with {done.returncode}")
    print(f"{Path(script).name} {' '.join(arguments)}: {done.stdout.strip().splitlines()[-1][:400]}", file=sys.stderr, flush=True)
    found: dict[str, Any] = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))
    return found
