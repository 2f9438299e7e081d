"""Encoding of rendered pixels, and the ways in which the web damages the result."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

CONTENT_TYPES: Final[dict[str, str]] = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
HTML_PAGE: Final = (
    b"<!DOCTYPE html>\n<html><head><title>Hotlinking is not allowed</title></head>\n"
    b"<body><h1>403</h1><p>Please visit our gallery to see this picture.</p></body></html>\n"
)


def encode(pixels: NDArray[np.uint8], extension: str, quality: int = 90) -> bytes:
    """RGB pixels uint8 [H, W, 3] as a JPEG ('jpg', 4:4:4), PNG or WebP file.

    Raises:
        KeyError: the extension is none of these.
    """
    if extension == "jpg":
        rgb = np.ascontiguousarray(pixels)
        return simplejpeg.encode_jpeg(rgb, quality=quality, colorspace="RGB", colorsubsampling="444")
    options = {"png": [cv2.IMWRITE_PNG_COMPRESSION, 1], "webp": [cv2.IMWRITE_WEBP_QUALITY, quality]}[extension]
    done, data = cv2.imencode(f".{extension}", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"encode: OpenCV could not write {pixels.shape} pixels as {extension}")
    return data.tobytes()


def truncate(data: bytes, share: float) -> bytes:
    """The first `share` of a file: a transfer that broke off and was stored so."""
    return data[: int(len(data) * share)]


def corrupt(data: bytes, extension: str) -> bytes:
    """Damage that no decoder can pass over: the file keeps its signature and loses the header that gives its size."""
    damaged = bytearray(data)
    if extension == "jpg":
        start = data.index(b"\xff\xc0" if b"\xff\xc0" in data else b"\xff\xc2")  # the frame header
        damaged[start : start + 19] = bytes(19)
    elif extension == "png":
        damaged[16:33] = b"\xff" * 17  # IHDR's payload and CRC
    else:
        damaged[20:] = b"\xff" * len(damaged[20:])  # the VP8 chunk's payload
    return bytes(damaged)


def stretch(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """The image made `factor` times as wide: a banner."""
    height, width = pixels.shape[:2]
    wide = cv2.resize(pixels, (width * factor, height), interpolation=cv2.INTER_LINEAR)
    return wide.astype(np.uint8, copy=False)


def shrink(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A square image reduced to side x side pixels."""
    return cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
