"""CLIP scoring through the stage (decode, crop, embed, finish, the machine's window) against the bare model.

    python tests/bench/bench_clip.py [--rows 512] [--photos FOLDER] [--threads 1] [--model ViT-B-32]

The bare model is fed with ready float tensors and token ids. Random weights of the named open_clip config: the time is
that of the real ones. Without --photos it scores made JPEGs of 640 x 480 pixels. Bar: 0.9 of the bare rate.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch

from pipeline.batches import WINDOW
from pipeline.blobs import BlobWriter, ImageRef
from pipeline.models import LocalModel
from pipeline.stage import Context
from schemas.sample import make_text
from stages.clip_score import ClipScore
from stages.models.open_clip import OpenClipModel, load

WORDS = "a red brown small dog cat house tree runs sits under over near green field two people with hats in the city".split()


def images(folder: str | None, count: int) -> list[bytes]:
    if folder:
        found = [path.read_bytes() for path in sorted(Path(folder).rglob("*.jpg"))]
    else:
        rng = np.random.default_rng(0)
        coarse = [rng.integers(0, 255, (60, 80, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(32)]
        found = [simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=90) for pixels in coarse]
    return [found[at % len(found)] for at in range(count)]


def make_rows(data: list[bytes], folder: Path) -> list[dict[str, Any]]:
    """Rows as the machine gives them: images in a tar, one text each."""
    rng, blobs = np.random.default_rng(1), BlobWriter(folder, 0)
    places = [blobs.add(f"{at:032x}", "jpg", raw) for at, raw in enumerate(data)]
    names = blobs.finish()
    return [
        {
            "image": ImageRef(folder / names[tar], offset, size), "sample_id": at.to_bytes(16, "big"),
            "texts": [make_text(" ".join(rng.choice(WORDS, 10)))],
        }
        for at, (tar, offset, size) in enumerate(places)
    ]  # fmt: skip


def through_stage(rows: list[dict[str, Any]], handle: LocalModel) -> float:
    """Rows per second with the window of batches that the machine keeps in flight."""
    stage, waiting, done = ClipScore(ClipScore.Params()), deque(), 0
    ctx = Context("clip_score", 0, model=handle)
    started = time.perf_counter()
    for start in range(0, len(rows), stage.batch_size):
        batch = rows[start : start + stage.batch_size]
        waiting.append((batch, handle.submit("embed", stage.prepare(batch, ctx))))
        if len(waiting) >= WINDOW:
            ready, future = waiting.popleft()
            done += len(stage.finish(ready, future.result(), ctx))
    while waiting:
        ready, future = waiting.popleft()
        done += len(stage.finish(ready, future.result(), ctx))
    assert done == len(rows)
    return len(rows) / (time.perf_counter() - started)


def bare(model: OpenClipModel, rows: list[dict[str, Any]]) -> float:
    """Rows per second of encode_image and encode_text alone, in the same batches, with the same threads."""
    size, tokens = model.batch_size, model.tokenizer([row["texts"][0]["text"] for row in rows])
    pixels = torch.randn(size, 3, model.image_size, model.image_size)
    torch.set_num_threads(model.threads)
    started = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(rows), size):
            model.model.encode_image(pixels, normalize=True)
            model.model.encode_text(tokens[start : start + size], normalize=True)
    return len(rows) / (time.perf_counter() - started)


def halves(rows: list[dict[str, Any]], handle: LocalModel) -> None:
    """Cost per row of what the stage adds around the model, in milliseconds."""
    stage, ctx = ClipScore(ClipScore.Params()), Context("clip_score", 0, model=handle)
    batch = rows[: stage.batch_size]
    answer = handle.submit("embed", stage.prepare(batch, ctx)).result()
    for name, action in (("prepare", lambda: stage.prepare(batch, ctx)), ("finish", lambda: stage.finish(batch, answer, ctx))):
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            action()
            seconds.append(time.perf_counter() - started)
        print(f"{name}: {statistics.median(seconds) / len(batch) * 1000:.2f} ms a row")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--photos", default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to write the tar of images")
    options = parser.parse_args()
    model = load({"kind": "open_clip", "name": options.model, "weights": "random", "device": "cpu", "threads": options.threads})
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows, handle = make_rows(images(options.photos, options.rows), Path(folder)), LocalModel(model)
        halves(rows, handle)
        bare(model, rows[:64])
        ratios = []
        for _ in range(options.repeats):
            ceiling, rate = bare(model, rows), through_stage(rows, handle)
            ratios.append(rate / ceiling)
            print(f"bare {ceiling:.1f} rows/s, stage {rate:.1f} rows/s, ratio {ratios[-1]:.3f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f} (bar 0.9)")


if __name__ == "__main__":
    main()
