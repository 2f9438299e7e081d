"""The resize modes beside img2dataset's own resizer, run in an interpreter of its own.

That interpreter is named by PAIRMILL_IMG2DATASET_PYTHON (img2dataset 1.47.0 pins older libraries than pairmill); without it this
one is tried.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from stages.images.decode import decode
from stages.images.normalize import ImageRules, normalize

pytestmark = pytest.mark.slow
MODES = ("keep_ratio", "keep_ratio_largest", "center_crop", "border")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def img2dataset() -> Callable[[list[dict]], list[tuple[int, int, str | None]]]:
    """Runs jobs, see img2dataset_resizer.py."""
    python = os.environ.get("PAIRMILL_IMG2DATASET_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import img2dataset.resizer"], capture_output=True, check=False).returncode:
        pytest.skip("no interpreter with img2dataset: name one with PAIRMILL_IMG2DATASET_PYTHON")

    def run(jobs: list[dict]) -> list[tuple[int, int, str | None]]:
        lines = "".join(json.dumps(job) + "\n" for job in jobs)
        done = subprocess.run([python, str(HERE / "img2dataset_resizer.py")], input=lines, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [tuple(json.loads(line)) for line in done.stdout.splitlines()]

    return run


def jobs_for(images: list[Path], folder: Path, sizes: tuple[int, ...], modes: tuple[str, ...] = MODES) -> list[dict]:
    return [
        {"image": str(image), "mode": mode, "size": size, "only_if_bigger": bigger, "out": str(folder / f"{image.stem}-{mode}-{size}-{bigger}.png")}
        for image in images for mode in modes for size in sizes for bigger in (False, True)
    ]  # fmt: skip


def ours(job: dict) -> np.ndarray:
    rules = ImageRules(
        resize_mode=job["mode"], image_size=job["size"], only_if_bigger=job["only_if_bigger"], encode_format="png", encode_quality=1
    )
    return decode(normalize(Path(job["image"]).read_bytes(), rules).data)


def theirs(job: dict) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(job["out"], cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def test_sizes_are_equal(tmp_path: Path, img2dataset: Callable) -> None:
    """60 shapes, odd and extreme ones among them, in all modes: every size is that of img2dataset, and every pixel too."""
    rng = np.random.default_rng(0)
    shapes = [(int(a), int(b)) for a, b in rng.integers(20, 300, (54, 2))] + [(5, 3), (1, 40), (300, 2), (33, 33), (34, 33), (400, 100)]
    images = []
    for width, height in shapes:
        images.append(tmp_path / f"{len(images)}.png")
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(images[-1])
    jobs = jobs_for(images, tmp_path, (33, 100))
    differing = []
    for job, (width, height, error) in zip(jobs, img2dataset(jobs), strict=True):
        mine = ours(job)
        if error is not None or mine.shape[:2] != (height, width):
            differing.append((job["mode"], job["size"], job["only_if_bigger"], Image.open(job["image"]).size, mine.shape[1::-1], (width, height), error))
        elif (mine != theirs(job)).any():
            differing.append((job["mode"], job["size"], "pixels", Image.open(job["image"]).size, float(np.abs(mine.astype(int) - theirs(job)).mean())))
    assert differing == []


@pytest.mark.parametrize(("size", "mean"), [(100, 2.0), (256, 0.1), (700, 0.1)])
def test_pixels_on_real_photos(tmp_path: Path, img2dataset: Callable, photos: list[Path], size: int, mean: float) -> None:
    """Equal but for the JPEG decoders' rounding, where the whole photo is decoded. At less than a quarter of the photo's size
    (100) pairmill lets the decoder halve it first: no photo is further off than twice the mean."""
    jobs = jobs_for(photos[:4], tmp_path, (size,))
    found = []
    for job, (width, height, error) in zip(jobs, img2dataset(jobs), strict=True):
        mine = ours(job)
        assert error is None and mine.shape == (height, width, 3), job
        found.append(float(np.abs(mine.astype(int) - theirs(job)).mean()))
    assert np.mean(found) <= mean and max(found) <= 2 * mean, f"{np.mean(found):.2f} grey levels, at most {max(found):.2f}"
    print(f"{size}: {np.mean(found):.2f} grey levels, at most {max(found):.2f}")
