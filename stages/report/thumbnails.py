"""Small JPEGs of stored images, within a budget of bytes."""

from __future__ import annotations

import base64
import functools
import io
from dataclasses import dataclass

from PIL import Image

from pipeline.blobs import ImageRef
from pipeline.errors import Fatal
from pipeline.run_view import RunView
from stages.images.decode import decode
from stages.images.header import ImageError, read_header

SIDE = 160  # pixels of the longer side
QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """A small image as a data: URI with its size in pixels, or why there is none."""

    uri: str = ""
    why: str = ""
    width: int = 0
    height: int = 0


def thumbnail(data: bytes, side: int = SIDE) -> Picture:
    """Image bytes as a JPEG whose longer side has at most `side` pixels, upright. Raises ImageError."""
    header = read_header(data)
    width, height = header.shown_size
    scale = min(1.0, side / max(width, height, 1))
    goal = (max(1, round(width * scale)), max(1, round(height * scale)))
    shrinks = scale < 1
    pixels = decode(data, header, min_width=goal[0] if shrinks else 0, min_height=goal[1] if shrinks else 0)
    out = io.BytesIO()
    Image.fromarray(pixels).resize(goal, Image.Resampling.LANCZOS).save(out, "JPEG", quality=QUALITY, optimize=True)
    return Picture("data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode(), "", *goal)


class Thumbnails:
    """data: URIs of stored images. `left_out` counts those that the budget (bytes of the page) did not allow."""

    def __init__(self, run: RunView, writer: str, budget: int):
        self.run = run
        self.writer = writer
        self.budget = budget
        self.used = 0
        self.left_out = 0

    def picture(self, place: tuple[str, int, int]) -> Picture:
        """The stored image at (tar, offset, size), small."""
        if self.used >= self.budget:
            self.left_out += 1
            return Picture(why="image left out to keep the page small")
        made = self._make(place)
        self.used += len(made.uri)
        return made

    @functools.lru_cache(maxsize=256)  # noqa: B019 - lives as long as one report
    def _make(self, place: tuple[str, int, int]) -> Picture:
        tar, offset, size = place
        try:
            return thumbnail(ImageRef(self.run.blob_path(tar, self.writer), offset, size).read())
        except ImageError as error:
            return Picture(why=f"the stored image cannot be shown: {error.code}")
        except Fatal:  # the tar is gone: the report still tells the rest
            return Picture(why="the stored image is no longer there")
