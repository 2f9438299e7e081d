"""A web server on loopback whose network breaks in chosen ways, and a recipe with the real download stage over it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner, Result

from pipeline.cli import app
from tests.stages.conftest import Web

BUDGET = {"window": 200, "min_rows": 50}  # a tenth and a quarter of the defaults, for inputs of some hundred rows


class OutageWeb(Web):
    """Serves one image per row at /<row>.jpg. `breaks(row)` says whether the connection is reset instead; `served` counts images."""

    def __init__(self, images: list[bytes]):
        super().__init__()
        self.images = images
        self.served = 0
        self.breaks: Callable[[int], bool] = lambda row: False

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        row = int(path.strip("/").removesuffix(".jpg"))
        if self.breaks(row):
            self.abort(writer)
            raise ConnectionResetError
        self.served += 1
        writer.write(self.http(self.images[row], content_type="image/jpeg"))
        await writer.drain()

    def stop_listening(self) -> bool:
        """From within `breaks`: close the listening socket, so that further connections are refused; resets the present one."""
        self._server.close()
        return True

    def listen_again(self) -> None:
        """Listen at the port of before."""
        start = asyncio.start_server(self._serve, self.host, self.port, reuse_address=True)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(5)


def write_recipe(folder: Path, rows: int, url: Callable[[int], str], rows_per_part: int, **download: Any) -> Path:
    """A table of `rows` URLs and a recipe that downloads them and writes shards; returns the recipe's path."""
    lines = [f"{url(row)},A photo of thing number {row}" for row in range(rows)]
    (folder / "pairs.csv").write_text("url,alt_text\n" + "\n".join(lines) + "\n")
    stages = [{"url_dup": {}}, {"download": {"allow_private": True, "retries": 0, "timeout_s": 60.0, **download}}]
    data = {
        "name": "outage",
        "input": {"kind": "url_table", "table": str(folder / "pairs.csv"), "rows_per_part": rows_per_part},
        "stages": stages,
        "budgets": {"download": BUDGET},
        "jobs": [{"write_shards": {"max_samples": 100, "parts_per_group": 2}}],
    }
    path = folder / "outage.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def pairmill(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100", "NO_COLOR": "1"})


def tree_digest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, by its path in it."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}
