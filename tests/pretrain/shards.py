"""A small dataset folder for the trainer's tests: tars, indexes and manifest as the product publishes them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (30, 50, 220), "yellow": (240, 220, 40)}


def encoded_image(index: int, ext: str, height: int, width: int) -> bytes:
    """An image of one plain colour with noise, in the format of `ext`."""
    rng = np.random.default_rng(index)
    colour = np.array(list(COLOURS.values())[index % len(COLOURS)])
    pixels = np.clip(colour + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)
    if ext == "jpg":
        return simplejpeg.encode_jpeg(pixels, quality=90)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, {"png": "PNG", "webp": "WEBP"}[ext])
    return out.getvalue()


def write_dataset(root: Path, samples: int = 24, shards: int = 2, height: int = 40, width: int = 48) -> Path:
    """Write `samples` samples in `shards` shards; every sixth is a png, every seventh a webp."""
    (root / "shards").mkdir(parents=True)
    listed = []
    for shard in range(shards):
        rows = []
        name = f"shards/train-{shard:05d}"
        with tarfile.open(root / f"{name}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in range(shard, samples, shards):
                ext = "png" if index % 6 == 5 else "webp" if index % 7 == 6 else "jpg"
                key = hashlib.md5(str(index).encode()).hexdigest()
                colour = list(COLOURS)[index % len(COLOURS)]
                caption = f"a {colour} square number {index}"
                data = encoded_image(index, ext, height, width)
                member = tarfile.TarInfo(f"{key}.{ext}")
                member.size = len(data)
                offset = tar.offset + 512
                tar.addfile(member, io.BytesIO(data))
                text_member = tarfile.TarInfo(f"{key}.txt")
                text_member.size = len(caption)
                tar.addfile(text_member, io.BytesIO(caption.encode()))
                rows.append({
                    "key": key, "offset": offset, "size": len(data), "ext": ext, "caption": caption,
                    "texts": [{"kind": "alt", "text": caption}, {"kind": "alt", "text": f"{colour} thing {index}"}],
                })
        pq.write_table(pa.Table.from_pylist(rows), root / f"{name}.parquet")
        tar_bytes = (root / f"{name}.tar").read_bytes()
        listed.append({
            "tar": f"{name}.tar", "index": f"{name}.parquet", "samples": len(rows), "tar_bytes": len(tar_bytes),
            "tar_sha256": hashlib.sha256(tar_bytes).hexdigest(),
            "index_sha256": hashlib.sha256((root / f"{name}.parquet").read_bytes()).hexdigest(),
        })
    manifest = {"format": 1, "splits": {"train": {"samples": samples, "shards": listed}}}
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root
