"""Train the CLIP that comes with the package on rendered scenes: `python -m stages.pretrain.rendered --out DIR`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from stages.demo.captions import caption, heldout_pairs
from stages.demo.scenes import draw_scene, render
from stages.demo.streams import seed_for
from stages.models.open_clip_loader import LoadedClip, compact_rows, load_clip
from stages.pretrain.checkpoint import fsync_folder
from stages.pretrain.config import TrainConfig, resolve_model
from stages.pretrain.data import ArraySamples, Samples
from stages.pretrain.draws import generator
from stages.pretrain.evaluate import auc, embed_images, embed_texts, eval_batches, evaluate_retrieval
from stages.pretrain.export import CONFIG_NAME, WEIGHTS_NAME
from stages.pretrain.images import ArrayImage, eval_view
from stages.pretrain.trainer import train

RECIPE = Path(__file__).parent / "recipes" / "rendered_clip.yaml"
RENDER_SIZE = 128  # the side the demo's web serves; models see it resized, as they see any image
NOTE = "trained on the rendered world and for it only: its scores say nothing about real images"
LARGEST_BUNDLE = 8 * 1024 * 1024


def scene_captions(stream: str, index: int, count: int) -> list[str]:
    """`count` true captions of a scene in varied language, a pure function of stream and index."""
    scene = draw_scene(seed_for(stream, index))
    return [caption(scene, generator(0, variant, f"{stream}:{index}", "caption")) for variant in range(count)]


def scene_view(stream: str, size: int, index: int) -> np.ndarray:
    """The evaluation view of a scene, uint8 [size, size, 3]."""
    return eval_view(ArrayImage(render(draw_scene(seed_for(stream, index)), RENDER_SIZE)), size)


def rendered_samples(
    stream: str, count: int, captions: int, size: int, workers: int = 1, cache: Path | None = None,
) -> ArraySamples:
    """The first `count` scenes of a stream with their captions, in memory: count x size x size x 3 bytes.

    `cache` is a folder that keeps the pixels, so that a training that goes on need not render again.
    """
    kept = cache / f"{stream}-{count}-{size}.npy" if cache else None
    if kept and kept.is_file():
        images = np.load(kept)
    else:
        images = np.empty((count, size, size, 3), dtype=np.uint8)
        with ProcessPoolExecutor(workers) as pool:
            for i, view in enumerate(pool.map(partial(scene_view, stream, size), range(count), chunksize=256)):
                images[i] = view
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            beside = kept.with_suffix(".beside.npy")
            np.save(beside, images)
            beside.rename(kept)
    texts = [scene_captions(stream, i, captions) for i in range(count)]
    return ArraySamples(images, texts, [f"{stream}:{i}" for i in range(count)])


def heldout_samples(count: int) -> ArraySamples:
    """Held-out pairs of the demo (no two with the same caption), at the size they are served."""
    pairs = heldout_pairs(count)
    images = np.stack([render(scene, RENDER_SIZE) for scene, _ in pairs])
    return ArraySamples(images, [[text] for _, text in pairs], [f"heldout:{i}" for i in range(len(pairs))])


def matched_auc(clip: LoadedClip, samples: Samples) -> float:
    """AUC of a scene's own caption against the caption of another scene, drawn by a seeded derangement."""
    image_emb = embed_images(clip, eval_batches(clip, samples))
    text_emb = embed_texts(clip, [samples.caption(i) for i in range(len(samples))])
    order = generator(0, 0, "", "mismatch").permutation(len(samples))
    donor = np.empty_like(order)
    donor[order] = np.roll(order, 1)  # a cycle: nobody is his own donor
    matched = (image_emb * text_emb).sum(dim=1)
    mismatched = (image_emb * text_emb[torch.from_numpy(donor)]).sum(dim=1)
    return auc(matched.tolist(), mismatched.tolist())


def evaluate(clip: LoadedClip, count: int) -> dict[str, Any]:
    """Retrieval and matched-against-mismatched AUC on scenes the training did not see."""
    found: dict[str, Any] = {}
    for name, samples in (("train_eval", rendered_samples("train_eval", count, 1, RENDER_SIZE)), ("heldout", heldout_samples(count))):
        found[name] = {**evaluate_retrieval(clip, samples), "auc": round(matched_auc(clip, samples), 5)}
        del found[name]["model"]  # the folder it was loaded from means nothing elsewhere
    return found


def used_tokens(samples: Samples, clip: LoadedClip) -> list[int]:
    """Ids of the tokens of all texts, the byte-level tokens (so that any text has rows of its own), start and end."""
    texts = [text for i in range(len(samples)) for text in samples.texts(i)]
    found = {int(token) for first in range(0, len(texts), 10_000)
             for token in clip.tokenizer(texts[first:first + 10_000]).unique()}
    vocabulary = clip.model.token_embedding.num_embeddings
    return sorted(found | set(range(512)) | {vocabulary - 2, vocabulary - 1})


def write_bundle(clip: LoadedClip, samples: Samples, out: Path) -> int:
    """Write float16 weights with the used embedding rows and the config; `load_clip` reads the folder. Returns bytes.

    Raises ValueError above 8 MiB, the most that the package carries.
    """
    from safetensors.torch import save_file

    state = compact_rows(clip.model.state_dict(), used_tokens(samples, clip))
    half = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor.contiguous()
        for name, tensor in state.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(half, out / WEIGHTS_NAME)
    size = (out / WEIGHTS_NAME).stat().st_size
    if size > LARGEST_BUNDLE:
        raise ValueError(f"{out / WEIGHTS_NAME} has {size} bytes, more than {LARGEST_BUNDLE}: choose smaller towers")
    preprocess = {"mean": list(clip.preprocess.mean), "std": list(clip.preprocess.std),
                  "interpolation": clip.preprocess.interpolation, "resize_mode": clip.preprocess.resize_mode}
    config = {"model_cfg": clip.model_cfg, "preprocess_cfg": preprocess, "note": NOTE}
    (out / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    fsync_folder(out)
    return size


def main(arguments: Sequence[str] | None = None) -> int:
    """Render, train, evaluate, and write `DIR/bundle` with weights, config and evaluation.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the training and the bundle")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="recipe (YAML)")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    options = parser.parse_args(arguments)
    recipe = yaml.safe_load(options.recipe.read_text(encoding="utf-8"))
    config = TrainConfig(**recipe["train"])
    began = time.monotonic()
    size = resolve_model(config.model)[0]["vision_cfg"]["image_size"]
    samples = rendered_samples(
        "train", recipe["scenes"], recipe["captions"], size, options.workers, options.out / "scenes"
    )
    rendered = time.monotonic()
    print(f"rendered {len(samples)} scenes in {rendered - began:.0f} s", file=sys.stderr)
    result = train(config, options.out, on_step=_report, samples=samples)
    bundle = options.out / "bundle"
    size_bytes = write_bundle(load_clip(result.export), samples, bundle)
    evaluation = evaluate(load_clip(str(bundle)), recipe["eval_scenes"])  # of what is shipped, not of what was trained
    evaluation |= {
        "note": NOTE, "command": "python -m stages.pretrain.rendered --out DIR", "recipe": recipe,
        "scenes": f"stream 'train', indices 0 to {recipe['scenes'] - 1}", "steps": result.steps,
        "epochs": round(result.epochs, 2), "seed": config.seed, "last_loss": round(result.loss, 5),
        "render_minutes": round((rendered - began) / 60, 1), "train_minutes": round(result.seconds / 60, 1),
        "resumed_from_step": result.resumed_from, "torch": torch.__version__.split("+")[0], "device": "cpu"
        if config.device == "cpu" or not torch.cuda.is_available() else torch.cuda.get_device_name(),
        "compute_threads": torch.get_num_threads(), "weights_bytes": size_bytes,
    }
    (bundle / "evaluation.json").write_text(json.dumps(evaluation, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({name: evaluation[name] for name in ("train_eval", "heldout")}, indent=2))
    return 0


def _report(step: int, line: dict[str, float]) -> None:
    print(json.dumps(line), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
