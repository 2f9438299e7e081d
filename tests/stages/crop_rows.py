"""Plug-ins for tests of cropped copies: in each group of three a scene, a crop of it, and another scene with as near an embedding."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from pipeline import registry
from pipeline.stage import Stage, Vector
from schemas.sample import TEXTS, make_text
from stages.demo.scenes import draw_scene, render
from stages.images.hashes import hash_image

registry.import_file(Path(__file__).with_name("dup_rows.py"))  # the source
COSINE = 0.92
WIDTH = 24


def picture(number: int) -> np.ndarray:
    """Rows 3n and 3n + 1: a busy scene and the crop of a tenth of its sides; 3n + 2: another scene."""
    group, kind = divmod(number, 3)
    pixels = render(draw_scene(600_000_000 + 2 * group + (kind == 2), 7))
    side = len(pixels)
    off = round(side * 0.1)
    return np.ascontiguousarray(pixels[off // 3 : side - off + off // 3, off - off // 3 : side - off // 3]) if kind == 1 else pixels


@cache
def planted(number: int) -> dict:
    """Embeddings of a group lie COSINE from each other, of different groups anywhere."""
    group, kind = divmod(number, 3)
    pixels = picture(number)
    hashed = hash_image(cv2.resize(pixels, (256, 256)), pdq=False, thumbnail=True)
    directions = np.linalg.qr(np.random.default_rng(group).standard_normal((WIDTH, 4)))[0].T
    vector = np.sqrt(COSINE) * directions[3] + np.sqrt(1 - COSINE) * directions[kind]
    return {
        "raw_sha256": np.random.default_rng([2, number]).bytes(32), "phash": hashed.phash, "phash_quality": 80, "phash_turned": b"",
        "thumbnail": np.frombuffer(hashed.thumbnail, np.uint8), "image_emb": vector.astype(np.float32), "width": pixels.shape[1], "height": pixels.shape[0],
        "texts": [make_text(f"text {number}", source=f"{number}")],
    }  # fmt: skip


class PlantedCrops(Stage):
    """Writes what `planted` says."""

    name = "planted_crops"
    reads = ("number",)
    writes = {
        "raw_sha256": pa.binary(32), "phash": pa.binary(), "phash_quality": pa.int16(), "phash_turned": pa.binary(), "thumbnail": Vector("uint8"),
        "image_emb": Vector("float32"), "width": pa.int32(), "height": pa.int32(), "texts": TEXTS,
    }  # fmt: skip

    def compute(self, rows, ctx):
        return [planted(row["number"]) for row in rows]
