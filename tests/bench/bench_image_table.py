"""Tables that hold their images: pairmill's reading of the cells against a plain pyarrow loop, and whole runs against the same images in tars.

    python tests/bench/bench_image_table.py --images 4000

Different JPEGs of about 100 KB in one file of each kind: Parquet as `datasets` writes it (snappy, 100 rows a row group), Parquet in one row
group, an Arrow stream (batches of 100 rows), a tar. The plain loop takes every cell to Python bytes. Rounds alternate, in one process, files
in the page cache; medians of 3. Runs are `read_images` in the plain loop of the driver (source and reading, no shards). One JSON line each.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.recipe import build_recipe  # noqa: E402  (a plain script: the repository is not on its path)
from pipeline.run import RunOptions, run  # noqa: E402
from stages.images.local import Place, plan_reads, read_places  # noqa: E402
from stages.source.image_table import ImageTable  # noqa: E402
from tests.bench.bench_reading import textured_jpeg  # noqa: E402

ROUNDS = 3
NOISE = 8.0  # of 480 x 360 pixels: about 100 KB


def write_all(root: Path, count: int) -> int:
    """The same images and captions in each form; returns their bytes."""
    images = [textured_jpeg(np.random.default_rng(n), 360, 480, NOISE) for n in range(count)]
    hf = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": data, "path": f"{n}.jpg"} for n, data in enumerate(images)]
    table = pa.table({"image": pa.array(rows, hf), "caption": [f"textured picture number {n}" for n in range(count)]})
    pq.write_table(table, root / "groups.parquet", row_group_size=100)
    pq.write_table(table, root / "one_group.parquet", row_group_size=count)
    with pa.OSFile(str(root / "stream.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, 100)
    with tarfile.open(root / "images.tar", "w") as tar:
        for n, data in enumerate(images):
            for name, content in ((f"{n:06}.jpg", data), (f"{n:06}.txt", f"textured picture number {n}".encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return sum(map(len, images))


def plainly(path: Path) -> int:
    """Bytes of all images by a plain pyarrow loop."""
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            return sum(len(cell.as_py()["bytes"]) for batch in file.iter_batches(100, columns=["image"], use_threads=False) for cell in batch.column(0))
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as reader:
        return sum(len(cell.as_py()["bytes"]) for batch in reader for cell in batch.column(0))


def by_pairmill(path: Path) -> int:
    """The same through the source's rows and the reader of read_images."""
    source = ImageTable(ImageTable.Params(table=str(path)))
    rows = ((row["source_file"], row["source_offset"]) for batch in source.batches() for row in batch.select(["source_file", "source_offset"]).to_pylist())
    tasks = plan_reads([Place(at, *place) for at, place in enumerate(rows)])
    return sum(len(data) for task in tasks for piece in read_places(task, 1 << 24) for _, data in piece if isinstance(data, bytes))


def whole_run(given: dict[str, Any], check: str) -> int:
    with tempfile.TemporaryDirectory(prefix="pairmill-bench-") as out:
        recipe = {"name": "tables", "input": {**given, "rows_per_part": 10_000}, "stages": [{"read_images": {"check": check}}]}
        result = run(build_recipe(recipe), Path(out) / "run", RunOptions(executor="local"))
        return int(result.view.counts()["read_images"]["kept"])


def seconds(work: Callable[[], int], expected: int) -> float:
    start = time.perf_counter()
    found = work()
    if found != expected:
        raise SystemExit(f"{found} and not {expected}: something was not read")
    return time.perf_counter() - start


def compared(name: str, works: dict[str, Callable[[], int]], expected: int, count: int) -> Iterator[dict[str, Any]]:
    times: dict[str, list[float]] = {way: [] for way in works}
    for _ in range(ROUNDS):
        for way, work in works.items():
            times[way].append(seconds(work, expected))
    rates = {way: round(count / statistics.median(found)) for way, found in times.items()}
    yield {"what": name, "rows": count, "rows_per_s": rates, "spread": {way: [round(count / t) for t in sorted(found)] for way, found in times.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    count = parser.parse_args().images
    with tempfile.TemporaryDirectory(prefix="pairmill-bench-") as folder:
        root = Path(folder)
        size = write_all(root, count)
        print(json.dumps({"images": count, "megabytes": round(size / 1e6), "mean_kb": round(size / count / 1e3)}), flush=True)
        names = ("groups.parquet", "one_group.parquet", "stream.arrow")
        for name in names:
            works = {"pyarrow": lambda name=name: plainly(root / name), "pairmill": lambda name=name: by_pairmill(root / name)}
            for line in compared(name, works, size, count):
                print(json.dumps(line), flush=True)
        for check in ("header", "decode"):
            given: dict[str, dict[str, Any]] = {name: {"kind": "image_table", "table": str(root / name)} for name in names}
            given["images.tar"] = {"kind": "webdataset_tars", "tars": str(root / "images.tar")}
            runs = {name: lambda one=one, check=check: whole_run(one, check) for name, one in given.items()}
            for line in compared(f"run, check: {check}", runs, count, count):
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
