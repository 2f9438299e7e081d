"""Building the rendered web: a table of image URLs with noisy alt-text, what the server answers, and the truth per row.

Everything written is a pure function of (rows, seed, base_url, size, slow_s): two builds give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.demo import faults, image_bytes
from stages.demo.captions import heldout_pairs
from stages.demo.rows import MAX_ROWS, Row, plan_rows, row_rng, table_places
from stages.demo.scenes import render
from stages.demo.serving import Behaviour, ServedAs, publish

MAX_SEED: Final = (1 << 16) - 1
LICENSES: Final = ("cc-by-4.0", "cc0-1.0", "all-rights-reserved", "")

URLS_SCHEMA: Final = pa.schema(
    [
        ("url", pa.string()),
        ("alt_text", pa.string()),
        ("uid", pa.string()),
        ("similarity", pa.float32()),
        ("license", pa.string()),
    ]
)
TRUTH_SCHEMA: Final = pa.schema(
    [
        ("row", pa.int64()),
        ("fault", pa.string()),
        ("expected_reason", pa.string()),
        ("scene_seed", pa.int64()),
        ("true_caption", pa.string()),
        ("original_row", pa.int64()),  # for copies, the clean row that stands before it; else -1
        ("path", pa.string()),  # what the server is asked for; '' where the link leads elsewhere
    ]
)


@dataclass(frozen=True)
class World:
    """A built world: its settings, and rows per fault."""

    folder: Path
    rows: int
    seed: int
    base_url: str
    size: int
    slow_s: float
    counts: dict[str, int]

    @property
    def port(self) -> int:
        return urlsplit(self.base_url).port or 80

    @property
    def urls(self) -> Path:
        return self.folder / "urls.parquet"

    @property
    def truth(self) -> Path:
        return self.folder / "truth.parquet"

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def routes(self) -> Path:
        return self.folder / "routes.json"


def build_world(
    folder: Path | str,
    rows: int = 3000,
    seed: int = 0,
    base_url: str = "http://127.0.0.1:8642",
    size: int = 128,
    slow_s: float = 20.0,
) -> World:
    """Write urls.parquet, truth.parquet (row-aligned), images/, routes.json and world.json.

    Args:
        folder: created where missing; files of an earlier build are replaced.
        rows: 200 or more; shares are those of faults.FAULTS (faults with a least number weigh more in small worlds).
        seed: 0 to 65535; worlds of different seeds share no scene.
        base_url: where the server will answer, without a trailing slash.
        size: side of the square images in pixels.
        slow_s: seconds that slow hosts take; set the recipe's timeout below it.

    Raises:
        ValueError: rows, seed or base_url is out of range.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"build_world: seed {seed} must be between 0 and {MAX_SEED}")
    if not base_url.startswith("http://") or base_url.endswith("/"):
        raise ValueError(f"build_world: base_url {base_url!r} must look like http://127.0.0.1:8642")
    if rows > MAX_ROWS:
        raise ValueError(f"build_world: rows {rows} is more than the {MAX_ROWS} whose scenes a seed holds")
    counts = faults.fault_counts(rows)
    world = World(Path(folder), rows, seed, base_url, size, slow_s, counts)
    shutil.rmtree(world.images, ignore_errors=True)
    world.images.mkdir(parents=True)
    items = plan_rows(counts, seed, base_url)
    places = table_places(items, seed)
    _write_tables(world, items, places)
    routes: dict[str, Behaviour] = {}
    served_as = ServedAs(seed, size, slow_s)
    for row in items:
        if row.path and row.path not in routes:
            routes.update(publish(world.folder, row, items, served_as))
    world.routes.write_text(json.dumps(routes, indent=0, sort_keys=True))
    settings = {**asdict(world), "folder": "."}
    (world.folder / "world.json").write_text(json.dumps(settings, indent=1, sort_keys=True))
    return world


def load_world(folder: Path | str) -> World:
    """A world built earlier.

    Raises:
        FileNotFoundError: the folder holds no world.json.
    """
    path = Path(folder) / "world.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: build the world first")
    return World(**{**json.loads(path.read_text()), "folder": Path(folder)})


def make_heldout_dataset(folder: Path | str, n: int = 1000, size: int = 128, seed: int = 0) -> Path:
    """Write n evaluation pairs: images/00000.png ... and pairs.parquet (image: relative path, caption, scene_seed).

    Returns the path of pairs.parquet. No two captions are equal; the scenes are of the 'heldout' stream.
    """
    root = Path(folder)
    (root / "images").mkdir(parents=True, exist_ok=True)
    pairs = heldout_pairs(n, seed)
    names = [f"images/{index:05d}.png" for index in range(n)]
    for name, (scene, _) in zip(names, pairs, strict=True):
        (root / name).write_bytes(image_bytes.encode(render(scene, size), "png"))
    table = pa.table(
        {
            "image": names,
            "caption": [text for _, text in pairs],
            "scene_seed": pa.array([scene.seed for scene, _ in pairs], pa.int64()),
        }
    )
    pq.write_table(table, root / "pairs.parquet")
    return root / "pairs.parquet"


def _write_tables(world: World, items: list[Row], places: NDArray[np.int64]) -> None:
    urls: list[dict[str, object]] = []
    truth: list[dict[str, object]] = []
    for item in np.argsort(places):
        row = items[int(item)]
        rng = row_rng(world.seed, row.item, 2)
        urls.append(
            {
                "url": row.url,
                "alt_text": row.alt_text,
                "uid": hashlib.sha256(f"uid/{world.seed}/{row.item}".encode()).hexdigest()[:32],
                "similarity": float(np.float32(rng.uniform(0.15, 0.40))),
                "license": LICENSES[int(rng.integers(len(LICENSES)))],
            }
        )
        truth.append(
            {
                "row": len(truth),
                "fault": row.fault,
                "expected_reason": faults.expected_reason(row.fault),
                "scene_seed": row.scene.seed,
                "true_caption": row.true_caption,
                "original_row": int(places[row.original]) if row.original >= 0 else -1,
                "path": row.path,
            }
        )
    pq.write_table(pa.Table.from_pylist(urls, schema=URLS_SCHEMA), world.urls, row_group_size=1000)
    pq.write_table(pa.Table.from_pylist(truth, schema=TRUTH_SCHEMA), world.truth)
