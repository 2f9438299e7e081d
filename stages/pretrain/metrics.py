"""The log of a training."""

from __future__ import annotations

import json
from pathlib import Path


class MetricsLog:
    """metrics.jsonl: one line per logged step; on resume, lines past the checkpoint are taken back."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        self.last_loss = float("nan")
        kept = []
        if resumed_step and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            # a kill may have cut the last line short
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= resumed_step]
        path.write_text("".join(kept), encoding="utf-8")
        if kept:
            self.last_loss = json.loads(kept[-1])["loss"]
        self._path = path

    def write(self, line: dict[str, float]) -> None:
        self.last_loss = line["loss"]
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
