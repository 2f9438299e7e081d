"""Two loops in C, called through ctypes, which lets other threads run: a check of JPEG data and OpenCV's area filter.

Both give what the libraries give that they stand in for, sooner. Without them (no compiler at installation, another kind of
machine) those libraries do the work.
"""

from __future__ import annotations

import ctypes
import functools
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np


def _load() -> ctypes.CDLL | None:
    """The compiled library, with its functions' types; None where it is not there or does not load."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_fast{suffix}")
        if path.exists():
            try:
                found = ctypes.CDLL(str(path))
            except OSError:  # built for another machine
                return None
            found.pairmill_jpeg_is_sound.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
            found.pairmill_shrink.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
            return found
    return None


_library = _load()


def jpeg_is_sound(data: bytes) -> bool:
    """True where every Huffman code of a baseline JPEG was read and no block is missing. False is no verdict: libjpeg has to tell."""
    return _library is not None and bool(_library.pairmill_jpeg_is_sound(data, len(data)))


def shrink(pixels: np.ndarray, width: int, height: int) -> np.ndarray | None:
    """Uint8 [H, W, 3] brought to [height, width, 3] as by cv2.resize with INTER_AREA; None where that has to do it.

    That is where a side grows, and where both shrink by whole factors (OpenCV sums these otherwise).
    """
    high, wide = pixels.shape[:2]
    if not _agrees() or height > high or width > wide or (wide % width == 0 and high % height == 0):
        return None
    return _shrink(np.ascontiguousarray(pixels), width, height)


def _shrink(pixels: np.ndarray, width: int, height: int) -> np.ndarray | None:
    made = np.empty((height, width, 3), np.uint8)
    assert _library is not None
    done = _library.pairmill_shrink(pixels.ctypes.data, *pixels.shape[:2], made.ctypes.data, height, width)
    return made if done else None


@functools.cache
def _agrees() -> bool:
    """True where our filter gives OpenCV's very bytes here: another build of it may sum in another way."""
    import cv2

    if _library is None:
        return False
    pixels = (np.arange(61 * 83 * 3, dtype=np.uint32) * 2654435761 >> 13).astype(np.uint8).reshape(61, 83, 3)
    sizes = ((40, 29), (82, 60), (31, 23), (7, 5))
    return all(np.array_equal(_shrink(pixels, *size), cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)) for size in sizes)
