"""Runs in an interpreter that has img2dataset: resizes the images of jobs (JSON lines on standard input) with its Resizer.

A job names image, mode, size, only_if_bigger and the PNG to write; the answers are width, height and error, one line per job.
"""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

from img2dataset.resizer import Resizer


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # the resizer silences standard output while it works
    for line in sys.stdin:
        job = json.loads(line)
        resizer = Resizer(job["size"], job["mode"], job["only_if_bigger"], encode_format="png", encode_quality=1)
        data, width, height, _, _, error = resizer(io.BytesIO(Path(job["image"]).read_bytes()))
        if data is not None:
            Path(job["out"]).write_bytes(data)
        answers.write(json.dumps([width, height, error]) + "\n")


if __name__ == "__main__":
    main()
