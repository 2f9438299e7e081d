"""CLIP scoring through pairmill (reading, decoding, cropping, embedding, commits) against the bare model.

The bare model is fed with ready float tensors and token ids in the same batches. Random weights of the named open_clip
config: the time is that of the real ones. Prints one JSON line; the median of the repeats counts.
Run: python tests/bench/bench_clip.py [--rows 512] [--photos FOLDER] [--threads 1] [--model ViT-B-32]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline import models, registry  # noqa: E402
from pipeline.recipe import build_recipe  # noqa: E402
from pipeline.run import RunOptions, run  # noqa: E402
from stages.models.open_clip import OpenClipModel  # noqa: E402

PLUGIN = Path(__file__).with_name("photo_plugins.py")


def through_pairmill(options: argparse.Namespace, spec: dict, folder: Path) -> float:
    """Rows per second of the whole stage: run_part from the first read to the commit of values and verdicts."""
    recipe = build_recipe(
        {
            "name": "clip",
            "input": {"kind": "photo_rows", "rows": options.rows, "rows_per_part": options.rows},
            "models": {"clip": spec},
            "stages": [{"store_photos": {"folder": options.photos}}, {"clip_score": {"model": "clip", "min": None}}],
        }
    )
    result = run(recipe, folder, RunOptions(executor="local"))
    assert result.tally.computed["clip_score"] == options.rows
    return options.rows / result.tally.seconds["clip_score"]


def bare(model: OpenClipModel, rows: int) -> float:
    """Rows per second of encode_image and encode_text alone, in the same batches, with the same threads."""
    size = model.batch_size
    tokens = model.tokenizer(["a red brown small dog sits under the green tree"] * size)
    pixels = torch.randn(size, 3, model.image_size, model.image_size)
    torch.set_num_threads(model.threads)
    started = time.perf_counter()
    with torch.inference_mode():
        for _ in range(0, rows, size):
            model.model.encode_image(pixels, normalize=True)
            model.model.encode_text(tokens, normalize=True)
    return rows / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--photos", default="", help="folder of JPEGs; default: made ones of 640 x 480 pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    registry.import_file(str(PLUGIN))
    spec = {"kind": "open_clip", "name": options.model, "weights": "random", "device": "cpu", "threads": options.threads}
    model = models.local_model(spec).model
    bare(model, model.batch_size)
    ceilings, rates = [], []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory(prefix="pairmill-clip-") as folder:
            ceilings.append(bare(model, options.rows))
            rates.append(through_pairmill(options, spec, Path(folder)))
    ratios = [round(rate / ceiling, 3) for rate, ceiling in zip(rates, ceilings, strict=True)]
    line = {"bench": "clip", "model": options.model, "rows": options.rows, "threads": options.threads}
    line |= {"bare_rows_per_s": round(statistics.median(ceilings), 2), "pairmill_rows_per_s": round(statistics.median(rates), 2)}
    print(json.dumps({**line, "ratios": ratios, "median_ratio": statistics.median(ratios)}))


if __name__ == "__main__":
    main()
