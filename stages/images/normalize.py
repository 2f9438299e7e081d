"""Stored images: kept as they came where nothing has to change, else upright 8-bit RGB, resized and encoded anew.

The resize modes have the names and the meaning of img2dataset 1.47 (resizer.py): https://github.com/rom1504/img2dataset
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import simplejpeg

from schemas.outcome import FailureCode
from stages.images import fast
from stages.images.buffers import Bytes
from stages.images.decode import DEFAULT_PIXEL_LIMIT, check_size, decode, verify
from stages.images.header import ImageError, ImageHeader, damaged, own_header, read_header

ResizeMode = Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"]
EncodeFormat = Literal["jpg", "png", "webp"]
STORED_FORMATS = frozenset({"jpg", "png", "webp"})

_HEADER_BYTES = 1 << 16  # an image whose size stands behind them is left to a decoder
_MOST_FLOATS = 1 << 24  # values: 64 MB
_SHORT_SIDE = frozenset({"keep_ratio", "center_crop"})

cv2.setNumThreads(1)  # one image per thread: OpenCV's own threads would only compete


@dataclass(frozen=True, slots=True)
class ImageRules:
    """How images are stored. `encode_quality`: 1 to 100 for jpg and webp, compression level 0 to 9 for png."""

    resize_mode: ResizeMode = "no"
    image_size: int = 256
    only_if_bigger: bool = False
    encode_format: EncodeFormat = "jpg"
    encode_quality: int = 95
    check: Literal["decode", "header"] = "decode"
    pixel_limit: int = DEFAULT_PIXEL_LIMIT


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image as it is stored; sizes in pixels, upright; `format` is also its file extension."""

    data: Bytes
    format: str
    width: int
    height: int
    original_width: int
    original_height: int


def normalize(data: bytes, rules: ImageRules) -> StoredImage:
    """The image to store for the bytes of a download.

    Bytes stay as they are where the format is jpg, png or webp, no resize applies, and the picture is a still one in
    8-bit RGB or grey, upright and without transparency. Raises ImageError: not_an_image, unsupported_format,
    pixel_limit, corrupt_image.
    """
    header = read_header(data)
    check_size(header, rules.pixel_limit)
    width, height = header.shown_size
    if _stays(header, rules) and (rules.check == "header" or verify(data, header, rules.pixel_limit)):
        return StoredImage(data, header.format, width, height, width, height)
    target = resize_target(width, height, rules)
    # A JPEG may be shrunk while it is decoded, but not below twice the target: from there the mean
    # difference to the area filter on the whole picture is 1 to 2.3 grey levels on photos; from nearer it was 3 to 4.
    shrinks = target is not None and 2 * target[0] <= width and 2 * target[1] <= height
    smallest = (2 * target[0], 2 * target[1]) if target is not None and shrinks else (0, 0)
    pixels = decode(data, header, pixel_limit=rules.pixel_limit, min_width=smallest[0], min_height=smallest[1])
    if target is not None:
        pixels = resize(pixels, target, rules, enlarges=not _is_bigger(width, height, rules))
    encoded = encode(pixels, rules.encode_format, rules.encode_quality)
    return StoredImage(encoded, rules.encode_format, pixels.shape[1], pixels.shape[0], width, height)


def kept_by_header(data: Bytes, rules: ImageRules) -> StoredImage | None:
    """The image as it came, where its header alone says so and no codec has to be asked; else None. Raises ImageError."""
    header = own_header(bytes(data[:_HEADER_BYTES]))
    if header is None or not _stays(header, rules):
        return None
    check_size(header, rules.pixel_limit)
    return StoredImage(data, header.format, header.width, header.height, header.width, header.height)


def _stays(header: ImageHeader, rules: ImageRules) -> bool:
    usable = header.plain and header.orientation == 1 and header.format in STORED_FORMATS
    return usable and resize_target(header.width, header.height, rules) is None


def resize_target(width: int, height: int, rules: ImageRules) -> tuple[int, int] | None:
    """Width and height to scale to, before any cropping or padding; None where the mode leaves the image alone.

    keep_ratio and center_crop bring the shorter side to `image_size`, keep_ratio_largest and border the longer one.
    """
    if rules.resize_mode == "no" or (rules.only_if_bigger and not _is_bigger(width, height, rules)):
        return None
    side = min(width, height) if rules.resize_mode in _SHORT_SIDE else max(width, height)
    scale = rules.image_size / side
    return max(1, round(width * scale)), max(1, round(height * scale))


def _is_bigger(width: int, height: int, rules: ImageRules) -> bool:
    side = min(width, height) if rules.resize_mode in _SHORT_SIDE else max(width, height)
    return side > rules.image_size


def resize(pixels: np.ndarray, target: tuple[int, int], rules: ImageRules, enlarges: bool) -> np.ndarray:
    """Scale uint8 [H, W, 3] to `target` (width, height): by area when shrinking, Lanczos when enlarging; crop or pad."""
    if (pixels.shape[1], pixels.shape[0]) != target:
        pixels = cv2.resize(pixels, target, interpolation=cv2.INTER_LANCZOS4) if enlarges else shrink(pixels, target)
    size = rules.image_size
    if rules.resize_mode == "center_crop":
        top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
        return np.ascontiguousarray(pixels[top : top + size, left : left + size])
    if rules.resize_mode == "border":
        return _pad(pixels, size)
    return pixels


def shrink(pixels: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    """OpenCV's area filter on uint8 [H, W, 3] to `target` (width, height), the same to the bit: by our own code where that is there. OpenCV
    sums bytes as floats in any case, and a fifth faster where they are given as floats. Whole factors have code of their own, and very
    large pictures would need much memory."""
    height, width = pixels.shape[:2]
    shrunk = fast.shrink(pixels, *target)
    if shrunk is not None:
        return shrunk
    if pixels.size > _MOST_FLOATS or (width % target[0] == 0 and height % target[1] == 0):
        return cv2.resize(pixels, target, interpolation=cv2.INTER_AREA)
    return cv2.convertScaleAbs(cv2.resize(pixels.astype(np.float32), target, interpolation=cv2.INTER_AREA))


def _pad(pixels: np.ndarray, size: int) -> np.ndarray:
    """Centre the picture on a white square."""
    padded = np.full((size, size, 3), 255, np.uint8)
    top, left = (size - pixels.shape[0]) // 2, (size - pixels.shape[1]) // 2
    padded[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return padded


def encode(pixels: np.ndarray, format: EncodeFormat, quality: int) -> bytes:
    """Pixels uint8 [H, W, 3] RGB as jpg (4:2:0), png or webp bytes. Raises ImageError where a format cannot hold the size."""
    if format == "jpg":
        try:
            return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorsubsampling="420")
        except ValueError as error:
            raise ImageError(FailureCode.CORRUPT_IMAGE, f"cannot be encoded as jpg: {error}") from error
    option = cv2.IMWRITE_PNG_COMPRESSION if format == "png" else cv2.IMWRITE_WEBP_QUALITY
    try:
        done, encoded = cv2.imencode(f".{format}", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [option, quality])
    except cv2.error as error:
        raise damaged(f"cannot be encoded as {format}", error) from error
    if not done:
        raise ImageError(FailureCode.CORRUPT_IMAGE, f"cannot be encoded as {format}: {pixels.shape[1]} x {pixels.shape[0]} pixels")
    return encoded.tobytes()
