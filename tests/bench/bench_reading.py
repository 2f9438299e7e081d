"""Reading shards for training: pairmill's loader against webdataset's own, side by side in one run.

    python tests/bench/bench_reading.py --samples 4000

Both decode, draw a random resized crop of 224 pixels (area 0.9 to 1, bicubic) and give batches of uint8 pixels, with
the same number of workers. webdataset shuffles shards and a buffer of 1,000 samples, pairmill permutes the whole set.
Rounds alternate, the clock starts at the first batch of each (so that starting workers counts for neither), and the
median round is taken. Prints one JSON line per image size; the bar is a ratio of at least 1.0.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
import torch
import webdataset as wds
from torchvision.transforms import InterpolationMode, RandomResizedCrop

sys.path.insert(0, str(Path(__file__).parents[2]))

from stages.pretrain.data import ShardDataset  # noqa: E402  (a plain script: the repository is not on its path)
from stages.pretrain.loader import BatchLoader, Position, Views  # noqa: E402
from stages.pretrain.objectives.base import Needs, Sample, Tokenize, stack_images  # noqa: E402

SIZE = 224
SHARD_SAMPLES = 500


def textured_jpeg(rng: np.random.Generator, height: int, width: int, noise: float) -> bytes:
    """A smooth random picture with noise: more noise, more bytes."""
    coarse = rng.uniform(0, 255, (height // 32, width // 32, 3)).astype(np.float32)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels = np.clip(picture + rng.normal(0, noise, picture.shape), 0, 255).astype(np.uint8)
    return simplejpeg.encode_jpeg(pixels, quality=90)


def images_of(size_bytes: int, height: int, width: int, count: int = 64) -> list[bytes]:
    """`count` different JPEGs of about `size_bytes`; the noise is found by bisection."""
    low, high = 0.0, 120.0
    for _ in range(12):
        middle = (low + high) / 2
        length = len(textured_jpeg(np.random.default_rng(0), height, width, middle))
        low, high = (middle, high) if length < size_bytes else (low, middle)
    return [textured_jpeg(np.random.default_rng(seed), height, width, low) for seed in range(count)]


def write_shards(root: Path, images: Sequence[bytes], samples: int) -> None:
    """Tars that webdataset reads, with the indexes and the manifest that pairmill reads."""
    (root / "shards").mkdir(parents=True)
    listed = []
    for first in range(0, samples, SHARD_SAMPLES):
        name, rows = f"shards/train-{first // SHARD_SAMPLES:05d}", []
        with tarfile.open(root / f"{name}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(first, min(first + SHARD_SAMPLES, samples)):
                key, caption = hashlib.md5(str(i).encode()).hexdigest(), f"textured picture number {i}"
                data = images[i % len(images)]
                row = {"key": key, "offset": tar.offset + 512, "size": len(data), "ext": "jpg", "caption": caption}
                rows.append(row)
                for ext, content in (("jpg", data), ("txt", caption.encode()), ("json", b'{"texts": []}')):
                    member = tarfile.TarInfo(f"{key}.{ext}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        pq.write_table(pa.Table.from_pylist(rows), root / f"{name}.parquet")
        listed.append({"tar": f"{name}.tar", "index": f"{name}.parquet", "samples": len(rows)})
    manifest = {"format": 1, "splits": {"train": {"samples": samples, "shards": listed}}}
    (root / "manifest.json").write_text(json.dumps(manifest))


def pairmill_batches(root: Path, batch: int, workers: int, margin: float, epoch: int) -> Iterator[int]:
    """Batch sizes of one epoch of pairmill's loader."""
    def collate(samples: Sequence[Sample], _: Tokenize) -> dict[str, torch.Tensor]:
        return {"images": stack_images(samples, "train")}

    loader = BatchLoader(ShardDataset(root), collate, lambda texts: torch.zeros(0), Needs(),
                         Views(SIZE, decode_margin=margin), batch, seed=0, workers=workers)
    stream = loader.batches(Position(epoch, 0))
    for _ in range(loader.batches_per_epoch):
        yield len(next(stream).tensors["images"])
    stream.close()


def webdataset_batches(root: Path, batch: int, workers: int, epoch: int) -> Iterator[int]:
    """Batch sizes of one epoch of webdataset's loader."""
    crop = RandomResizedCrop(SIZE, scale=(0.9, 1.0), interpolation=InterpolationMode.BICUBIC)
    torch.manual_seed(epoch)
    dataset = (
        wds.WebDataset(sorted(map(str, root.glob("shards/*.tar"))), shardshuffle=100, empty_check=False)
        .shuffle(1000).decode("pil").to_tuple("jpg", "txt")
        .map_tuple(lambda image: np.asarray(crop(image)), lambda text: text).batched(batch, partial=False)
    )
    for images, _ in wds.WebLoader(dataset, batch_size=None, num_workers=workers):
        yield len(images)


def rate(batches: Iterator[int]) -> float:
    """Samples per second from the first batch on."""
    next(batches)
    began, seen = time.perf_counter(), 0
    for count in batches:
        seen += count
    return seen / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for size_bytes, height, width in ((160_000, 480, 640), (15_000, 192, 256)):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "dataset"
            images = images_of(size_bytes, height, width)
            write_shards(root, images, options.samples)
            rates: dict[str, list[float]] = {"webdataset": [], "pairmill": [], "pairmill_margin_2": []}
            for epoch in range(options.rounds):
                common = (root, options.batch, options.workers)
                rates["webdataset"].append(rate(webdataset_batches(*common, epoch)))
                rates["pairmill"].append(rate(pairmill_batches(*common, 1.0, epoch)))
                rates["pairmill_margin_2"].append(rate(pairmill_batches(*common, 2.0, epoch)))
            median = {name: round(statistics.median(values), 1) for name, values in rates.items()}
            print(json.dumps({
                "bench": "reading", "image_bytes": round(statistics.mean(map(len, images))), "pixels": [height, width],
                "samples": options.samples, "workers": options.workers,
                **{f"{name}_samples_per_s": value for name, value in median.items()},
                "ratio": round(median["pairmill"] / median["webdataset"], 3),
                "ratio_margin_2": round(median["pairmill_margin_2"] / median["webdataset"], 3),
            }), flush=True)


if __name__ == "__main__":
    main()
