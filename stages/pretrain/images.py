"""Encoded images of a dataset and the two views of them that training and evaluation use."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import simplejpeg
from PIL import Image

from stages.images.decode import pixels_damaged

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class ImageSource(Protocol):
    """One image of a sample, not decoded before it is asked for."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels, read without decoding where the format allows it."""

    def decode(self, min_height: int = 0, min_width: int = 0) -> np.ndarray:
        """Pixels, uint8 [H, W, 3] RGB; may be smaller than `shape`, never below the minimum (0: full size)."""


class ArrayImage:
    """An image that is already decoded: uint8 [H, W, 3]."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    @property
    def shape(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]

    def decode(self, min_height: int = 0, min_width: int = 0) -> np.ndarray:
        return self.pixels


class JpegImage:
    """A JPEG, decoded by libjpeg-turbo at the smallest of its eighth-step scales that keeps the asked minimum.

    One that is only oddly built (a broken colour profile, bytes behind its end) is read by Pillow, in full, as the download read it.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        height, width, self.colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        self._shape = (height, width)

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    def decode(self, min_height: int = 0, min_width: int = 0) -> np.ndarray:
        if self.colorspace == "CMYK":  # libjpeg-turbo gives no RGB of these; Pillow inverts and converts them
            return _decode_with_pillow(self.data)
        try:
            return simplejpeg.decode_jpeg(self.data, "RGB", min_height=min_height, min_width=min_width)
        except ValueError as error:
            if pixels_damaged(error):
                raise
            return _decode_with_pillow(self.data)


class PillowImage:
    """Any other format that Pillow reads (png, webp); always decoded in full."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        with Image.open(io.BytesIO(data)) as image:
            self._shape = (image.height, image.width)

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    def decode(self, min_height: int = 0, min_width: int = 0) -> np.ndarray:
        return _decode_with_pillow(self.data)


def _decode_with_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def open_image(data: bytes, ext: str) -> ImageSource:
    """The image behind `data`; `ext` is the extension of its tar member (jpg, png, webp).

    Raises ValueError or OSError (as the codec does) where the header cannot be read.
    """
    return JpegImage(data) if ext in ("jpg", "jpeg") else PillowImage(data)


def resize(pixels: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Anti-aliased resize of uint8 [H, W, 3] as torchvision does it on Pillow images."""
    if pixels.shape[:2] == (height, width):
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((width, height), _FILTERS[interpolation]))


def eval_view(
    image: ImageSource, size: int, interpolation: str = "bicubic", resize_mode: str = "shortest",
) -> np.ndarray:
    """The evaluation view: uint8 [size, size, 3].

    'shortest' resizes the shorter side and crops the centre, 'squash' resizes both sides; pixel for pixel what
    open_clip's `image_transform_v2(is_train=False)` feeds its models, hence decoded in full.
    """
    pixels = image.decode()
    if resize_mode == "squash":
        return resize(pixels, size, size, interpolation)
    if resize_mode != "shortest":
        raise ValueError(f"resize_mode {resize_mode!r} is not supported: use 'shortest' or 'squash'")
    height, width = pixels.shape[:2]
    # torchvision's Resize truncates the longer side, its CenterCrop rounds the offset
    if height <= width:
        new_height, new_width = size, int(size * width / height)
    else:
        new_height, new_width = int(size * height / width), size
    pixels = resize(pixels, new_height, new_width, interpolation)
    top, left = int(round((new_height - size) / 2.0)), int(round((new_width - size) / 2.0))
    return pixels[top:top + size, left:left + size]


def draw_crop(
    rng: np.random.Generator, height: int, width: int, scale: Sequence[float], ratio: Sequence[float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Crop (top, left, height, width) drawn as torchvision's RandomResizedCrop does: ten tries, then the centre."""
    for _ in range(10):
        area = height * width * rng.uniform(scale[0], scale[1])
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(0, height - crop_height + 1))
            return top, int(rng.integers(0, width - crop_width + 1)), crop_height, crop_width
    crop_width, crop_height = width, height
    if width / height < ratio[0]:
        crop_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        crop_width = round(height * ratio[1])
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def train_view(
    image: ImageSource, size: int, rng: np.random.Generator, scale: Sequence[float] = (0.9, 1.0),
    interpolation: str = "bicubic", decode_margin: float = 1.0,
) -> np.ndarray:
    """The training view: a random resized crop, uint8 [size, size, 3] (open_clip's only augmentation by default).

    The crop is drawn in full-size pixels, so it does not depend on how far the decoder shrinks. A JPEG is decoded at
    the smallest scale whose crop still measures `decode_margin * size` pixels on both sides.
    """
    height, width = image.shape
    top, left, crop_height, crop_width = draw_crop(rng, height, width, scale)
    shrink = min(1.0, decode_margin * size / min(crop_height, crop_width))
    pixels = image.decode(math.ceil(height * shrink), math.ceil(width * shrink)) if shrink < 1.0 else image.decode()
    down = pixels.shape[0] / height
    across = pixels.shape[1] / width
    rows = slice(round(top * down), max(round((top + crop_height) * down), round(top * down) + 1))
    columns = slice(round(left * across), max(round((left + crop_width) * across), round(left * across) + 1))
    return resize(pixels[rows, columns], size, size, interpolation)
