"""The square view of an image that a CLIP sees, as open_clip's own transform makes it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from stages.images.decode import decode
from stages.images.header import read_header

_NO_LIMIT = 1 << 62  # pixels: the stage that stored the image has checked its own limit
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def crop_image(data: bytes, size: int, mode: str = "shortest", filter: str = "bicubic") -> np.ndarray:
    """Image bytes to uint8 [size, size, 3] as open_clip's own transform makes them (open_clip/transform.py).

    shortest: scale the shorter side to `size`, crop the centre; squash: scale both sides; longest: scale the longer
    side and pad with black. A large JPEG is decoded at 1/2, 1/4 or 1/8 first. Raises ImageError.
    """
    header = read_header(data)
    width, height = header.shown_size
    scale = size / (max(width, height) if mode == "longest" else min(width, height))
    goal = (size, size) if mode == "squash" else (round(width * scale), round(height * scale))
    shrinks = goal[0] < width and goal[1] < height
    smallest = goal if shrinks else (0, 0)
    pixels = decode(data, header, pixel_limit=_NO_LIMIT, min_width=smallest[0], min_height=smallest[1])
    return crop_pixels(pixels, size, mode, filter, (width, height))


def crop_pixels(pixels: np.ndarray, size: int, mode: str = "shortest", filter: str = "bicubic", original: tuple[int, int] | None = None) -> np.ndarray:
    """The same of decoded pixels uint8 [H, W, 3]; `original`: width and height of the image where it was decoded smaller."""
    width, height = original or (pixels.shape[1], pixels.shape[0])
    image, resample = Image.fromarray(pixels), _FILTERS[filter]
    if mode == "squash":
        return np.asarray(image.resize((size, size), resample))
    if mode == "longest":
        scale = size / max(width, height)
        small = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), resample)
        square = Image.new("RGB", (size, size))
        square.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
        return np.asarray(square)
    return np.asarray(image.resize((size, size), resample, box=_centre_box(width, height, *image.size, size)))


def _centre_box(width: int, height: int, decoded_width: int, decoded_height: int, size: int) -> tuple[float, float, float, float]:
    """The part of the decoded picture that torchvision's Resize(size) and CenterCrop(size) show, in its pixels.

    Sizes are rounded from the original `width` x `height` as torchvision does: the longer side down, the margin by round.
    """
    scaled_width = size if width <= height else int(size * width / height)
    scaled_height = size if height <= width else int(size * height / width)
    left, top = round((scaled_width - size) / 2), round((scaled_height - size) / 2)
    per_x, per_y = decoded_width / scaled_width, decoded_height / scaled_height
    return left * per_x, top * per_y, (left + size) * per_x, (top + size) * per_y
