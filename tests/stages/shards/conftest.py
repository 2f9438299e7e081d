"""A run over small real images, driven through the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import registry
from pipeline.recipe import Recipe, build_recipe

TOYS = str(Path(__file__).parent / "toys.py")


@pytest.fixture(scope="session", autouse=True)
def toys() -> None:
    registry.import_file(TOYS)


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    """A recipe of Pictures, StoreImages, Rate and PairUp: 200 rows in parts of 25, two parts a group, shards of at most 12."""

    def make(
        rows: int = 200, repeated: tuple[int, ...] = (), same: tuple[int, ...] = (), min: float = 0.1, pairs: dict[str, Any] | None = None,
        backwards: bool = False, place: str = "", rows_per_part: int = 25, folds: tuple[str | None, ...] = (), **job: Any,
    ) -> Recipe:  # fmt: skip
        return build_recipe(
            {
                "name": "pictures",
                "input": {
                    "kind": "pictures", "rows": rows, "repeated": list(repeated), "rows_per_part": rows_per_part, "place": place, "folds": list(folds),
                },
                "stages": [
                    {"store_images": {"same": list(same), "backwards": backwards}},
                    {"rate": {"min": min}},
                    *([{"pair_up": pairs}] if pairs is not None else []),
                ],
                "jobs": [{"write_shards": {"max_samples": 12, "parts_per_group": 2, **job}}],
            }
        )

    return make


@pytest.fixture
def file_bytes() -> Callable[[Path], dict[str, bytes]]:
    """Relative path -> bytes of every file of a folder."""

    def read(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    return read
