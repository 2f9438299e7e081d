"""A captioner trained on texts alone (objective `maccap`), on the rendered world: objects that its captions name, by noise and by sub-regions.

The bundled CLIP stays as it is, a small language model is trained from random weights on `--texts` captions, without and with noise. Captions of
`--scenes` scenes that neither training has seen are compared with what is there: share of the named objects that exist with that colour (precision), and
of the objects that are named (recall). `best of 5`: of five draws of the noise that with the highest cosine to the image, as the paper ranks.
Captions of the next scene tell what chance gives, those from the true captions' own embeddings what the gap between texts and images costs.

`python tests/bench/bench_maccap.py [--texts 20000] [--steps 1500] [--scenes 200]`
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from stages.demo.captions import caption_for
from stages.demo.claims import named_objects
from stages.demo.scenes import Scene, draw_scene, render
from stages.demo.streams import seed_for
from stages.models import maccap, open_clip
from stages.models.protocols import ChatRequest, Sampling, image_digest
from stages.pretrain.config import TrainConfig
from stages.pretrain.data import ArraySamples
from stages.pretrain.trainer import train

MODEL = {
    "clip": "rendered_clip", "queries": 16, "heads": 8,
    "lm": {"vocabulary": "rendered", "config": {
        "model_type": "opt", "hidden_size": 128, "word_embed_proj_dim": 128, "ffn_dim": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 192, "dropout": 0.0}},
}  # fmt: skip
SIDE = 96


def learn(texts: list[str], variance: float, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    samples = ArraySamples(np.zeros((len(texts), 1, 1, 3), np.uint8), [[text] for text in texts], [f"{index:032x}" for index in range(len(texts))])
    config = TrainConfig(
        model=MODEL, objective="maccap", objective_params={"variance": variance}, steps=options.steps, batch_size=64, lr=2e-3,
        warmup=options.steps // 15, weight_decay=0.05, grad_clip=1.0, checkpoint_every=10**6, threads=options.threads, workers=1,
    )  # fmt: skip
    began = time.monotonic()
    result = train(config, folder, samples=samples)
    return {"loss": round(result.loss, 3), "seconds": round(time.monotonic() - began)}


def write(spec: dict[str, Any], requests: list[ChatRequest]) -> list[str]:
    model = maccap.load(spec)
    return [answer.text for answer in model.chat(requests)]  # type: ignore[union-attr]


def figures(texts: list[str], scenes: list[Scene]) -> dict[str, float]:
    named = [named_objects(text) for text in texts]
    there = [{(o.color, o.shape) for o in scene.objects} for scene in scenes]
    right = sum(len(a & b) for a, b in zip(named, there, strict=True))
    return {"precision": round(right / max(1, sum(map(len, named))), 3), "recall": round(right / sum(map(len, there)), 3)}


def from_texts(spec: dict[str, Any], texts: list[str]) -> list[str]:
    """Captions written from the texts' own embeddings without noise: what decoder and CLIP can say at best."""
    import torch

    from stages.pretrain.nets.text_captioner import load_captioner

    model, clip, facts = load_captioner(Path(spec["weights"]))
    torch.set_num_threads(spec["threads"])
    with torch.inference_mode():
        seen = clip.model.encode_text(torch.as_tensor(clip.tokenizer(texts)), normalize=True).float()  # type: ignore[operator]
        return [text for text, _, _ in model.write(seen[:, None].expand(-1, facts["regions"], -1), 64, 4)]


def best(clip: Any, drawn: list[list[str]], images: list[np.ndarray]) -> list[str]:
    """Of each image's captions that with the highest cosine."""
    from stages.images.crop import crop_pixels

    facts = clip.describe()
    pixels = np.stack([crop_pixels(image, facts["image_size"], facts["resize_mode"], facts["interpolation"]) for image in images])
    seen = clip.embed({"images": pixels, "texts": []})["image"]
    cosines = [(clip.embed_texts(texts) * seen).sum(1) for texts in drawn]
    return [drawn[at][row] for row, at in enumerate(np.argmax(cosines, axis=0))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variances", type=float, nargs="+", default=[0.0, 0.016])
    options = parser.parse_args()
    texts = [caption_for(draw_scene(seed_for("train", index))) for index in range(options.texts)]
    scenes = [draw_scene(seed_for("train_eval", 60_000 + index)) for index in range(options.scenes)]
    images = [render(scene, SIDE) for scene in scenes]
    asked = [ChatRequest("", "", image, image_digest(image), Sampling(64)) for image in images]
    clip = open_clip.load({"kind": "open_clip", "weights": "bundled:rendered_clip"})
    found: dict[str, Any] = {"bench": "maccap", **vars(options)}
    with tempfile.TemporaryDirectory() as base:
        for variance in options.variances:
            folder = Path(base) / str(variance)
            found[f"variance {variance}"] = one = learn(texts, variance, options, folder)
            spec = {"kind": "maccap", "weights": str(folder / "export"), "threads": options.threads}
            for name, more in (("sub-regions", {}), ("whole image", {"regions": 0})):
                written = write(spec | more, asked)
                one[name] = figures(written, scenes)
                one[f"{name}, captions of the next scene"] = figures(written[1:] + written[:1], scenes)
            one["from the true captions' embeddings"] = figures(from_texts(spec, [caption_for(scene) for scene in scenes]), scenes)
            draws = [[ChatRequest("", "", r.image, r.image_digest, Sampling(64, temperature=1.0, seed=seed)) for r in asked] for seed in range(1, 6)]
            drawn = [write(spec | {"regions": 0, "variance": 0.016}, requests) for requests in draws]
            one["best of 5, whole image"] = figures(best(clip, drawn, images), scenes)
            one["examples"] = [{"caption": caption_for(scene), "written": text} for scene, text in zip(scenes[:3], drawn[0], strict=False)]
            print(json.dumps({f"variance {variance}": one}), flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
