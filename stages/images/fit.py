"""An image scaled down to a number of pixels, as a multimodal language model sees it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from stages.images.decode import decode
from stages.images.header import read_header

_NO_LIMIT = 1 << 62  # pixels: the stage that stored the image has checked its own limit


def fit_image(data: bytes, max_pixels: int) -> np.ndarray:
    """Image bytes to uint8 [H, W, 3] with H * W <= max_pixels, aspect ratio kept, never enlarged. Raises ImageError.

    A large JPEG is decoded at 1/2, 1/4 or 1/8 first.
    """
    header = read_header(data)
    width, height = header.shown_size
    if width * height <= max_pixels:
        return decode(data, header, pixel_limit=_NO_LIMIT)
    scale = (max_pixels / (width * height)) ** 0.5
    goal = (min(max_pixels, max(1, int(width * scale))), min(max_pixels, max(1, int(height * scale))))
    pixels = decode(data, header, pixel_limit=_NO_LIMIT, min_width=goal[0], min_height=goal[1])
    return np.asarray(Image.fromarray(pixels).resize(goal, Image.Resampling.BICUBIC))
