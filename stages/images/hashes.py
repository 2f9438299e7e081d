"""Perceptual hashes of decoded pixels: PDQ (256 bits, by pdqhash) and a DCT pHash (64 bits), each with how much there is to see.

The picture is first brought to 512 x 512 pixels, as PDQ's authors advise: its filter works in whole pixels, so that two sizes of one photo would
differ by up to 50 bits without. Neither hash keeps the aspect.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import cv2
import numpy as np

from stages.images import registration

WORKING_SIDE = 512
BORDER_LEVELS = 24  # of 255: a JPEG of quality 50 leaves that much beside an edge
BORDER_MOST = 0.25
EDGE_LINES = 8  # a small picture that is enlarged has edges that wide
STRAIGHT_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class ImageHashes:
    """Hashes as bytes, most significant bit first: `phash` (8) and, where asked for, `pdq` (32).

    quality: 0 (flat) to 100, how much there is to see. `phash_turned`, `pdq_turned`: hashes of the mirrored and rotated picture, one behind another.
    `thumbnail`: a small copy (`stages.images.registration`), where asked for.
    """

    phash: bytes
    quality: int
    pdq: bytes | None = None
    pdq_quality: int | None = None
    phash_turned: bytes = b""
    pdq_turned: bytes = b""
    thumbnail: bytes = b""


def has_pdq() -> bool:
    """Whether the library that computes PDQ is installed."""
    return importlib.util.find_spec("pdqhash") is not None


def hash_image(
    pixels: np.ndarray, *, pdq: bool = True, mirrored: bool = False, rotated: bool = False, trimmed: bool = False, thumbnail: bool = False
) -> ImageHashes:
    """Hashes of pixels uint8 [H, W, 3] RGB. mirrored: also of the left-right mirror image; rotated: also of the picture turned by 90, 180 and
    270 degrees; both: of all seven other copies. trimmed: of the picture without its border of one colour. Raises ImportError where pdq is asked
    for and pdqhash is not installed.
    """
    whole, pixels = pixels, square(pixels)
    if trimmed and (inner := without_border(whole, pixels)) is not whole:
        pixels = square(inner)
    coefficients = _low_frequencies(pixels)
    turns = _turns(mirrored, rotated)
    phash, turned = _bits(coefficients), b"".join(_bits(_turn(coefficients, *turn)) for turn in turns)
    quality, small = picture_quality(pixels), registration.thumbnail(pixels) if thumbnail else b""
    if not pdq:
        return ImageHashes(phash, quality, phash_turned=turned, thumbnail=small)
    import pdqhash

    vector, pdq_quality = pdqhash.compute(pixels)
    # The library's own turned hashes are approximate (30 to 50 bits off on photos), so the turned pixels are hashed.
    pdq_turned = b"".join(_packed(pdqhash.compute(_turned_pixels(pixels, *turn))[0]) for turn in turns)
    return ImageHashes(phash, quality, _packed(vector), int(pdq_quality), turned, pdq_turned, small)


def _packed(vector: np.ndarray) -> bytes:
    return np.packbits(np.asarray(vector, np.uint8)).tobytes()


def square(pixels: np.ndarray) -> np.ndarray:
    """Pixels as WORKING_SIDE x WORKING_SIDE: sides are averaged down by area, or enlarged linearly."""
    for axis in (0, 1):
        size = pixels.shape[axis]
        shape = (WORKING_SIDE, pixels.shape[0]) if axis else (pixels.shape[1], WORKING_SIDE)
        if size != WORKING_SIDE:
            pixels = cv2.resize(pixels, shape, interpolation=cv2.INTER_AREA if size > WORKING_SIDE else cv2.INTER_LINEAR)
    return np.ascontiguousarray(pixels)


def without_border(pixels: np.ndarray, squared: np.ndarray) -> np.ndarray:
    """Pixels [H, W, 3] without a border of one colour around them; the same array where there is none.

    A border is looked for in the `squared` picture: rows, then columns, from each edge inwards, whose values lie within BORDER_LEVELS of the edge's colour. It
    must end in a straight edge, where most of a line changes at once: else it is a plain background, or the sky. So is one wider than BORDER_MOST of a side.
    """
    cut = []
    for axis in (0, 1):
        lines = squared if axis == 0 else squared[cut[0] : squared.shape[0] - cut[1]].transpose(1, 0, 2)
        cut += [_border_depth(side) for side in (lines, lines[::-1])]
    if not any(cut):
        return pixels
    height, width = (size / WORKING_SIDE for size in pixels.shape[:2])
    top, bottom, left, right = round(cut[0] * height), round(cut[1] * height), round(cut[2] * width), round(cut[3] * width)
    return np.ascontiguousarray(pixels[top : pixels.shape[0] - bottom, left : pixels.shape[1] - right])


def _border_depth(lines: np.ndarray) -> int:
    """Lines of the border that begins with the first of `lines` [N, M, 3]; 0 for none."""
    edge = np.median(lines[0], axis=0).astype(np.int16)
    near = lines[: int(BORDER_MOST * len(lines)) + EDGE_LINES + 1].astype(np.int16)
    off = np.abs(near - edge).max(axis=2) > BORDER_LEVELS
    found = off.any(axis=1)
    depth = int(np.argmax(found))
    if not found.any() or not 0 < depth < len(near) - EDGE_LINES:
        return 0
    jump = np.abs(near[depth - 1] - near[depth + EDGE_LINES]).max(axis=1) > BORDER_LEVELS
    return depth if jump.mean() >= STRAIGHT_SHARE else 0


def picture_quality(pixels: np.ndarray) -> int:
    """0 to 100 by PDQ's formula (Facebook 2019, The TMK+PDQF video-hashing algorithm and the PDQ image-hashing algorithm): the steps between
    neighbours of a 64 x 64 grey picture in percent of full scale, each cut to whole numbers, summed and divided by 90."""
    grey = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32)
    steps = sum(int(np.trunc(np.abs(np.diff(grey, axis=axis)) * (100 / 255)).sum()) for axis in (0, 1))
    return min(100, steps // 90)


def _low_frequencies(pixels: np.ndarray) -> np.ndarray:
    """DCT coefficients 1 to 8 both ways (float32 [8, 8], rows are vertical frequencies) of the 32 x 32 grey picture: pHash of Zauner 2010, section 3.2.1."""
    return _dct(cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA))


def _dct(grey: np.ndarray) -> np.ndarray:
    return cv2.dct(grey.astype(np.float32))[1:9, 1:9]


def hash_bits(grey: np.ndarray) -> bytes:
    """The 64-bit pHash (8 bytes) of a grey picture uint8 [32, 32]."""
    return _bits(_dct(grey))


def _bits(coefficients: np.ndarray) -> bytes:
    """One bit per coefficient, row by row: above the median of the 64."""
    return np.packbits(coefficients > np.median(coefficients)).tobytes()


# A turned copy as (transpose, flip left-right, flip top-bottom), the flips after the transpose.
_Turn = tuple[bool, bool, bool]
_MIRRORED: tuple[_Turn, ...] = ((False, True, False),)
_ROTATED: tuple[_Turn, ...] = ((True, False, True), (False, True, True), (True, True, False))
_BOTH: tuple[_Turn, ...] = (*_MIRRORED, *_ROTATED, (False, False, True), (True, False, False), (True, True, True))


def _turns(mirrored: bool, rotated: bool) -> tuple[_Turn, ...]:
    return _BOTH if mirrored and rotated else _MIRRORED if mirrored else _ROTATED if rotated else ()


def _turned_pixels(pixels: np.ndarray, transpose: bool, left_right: bool, top_bottom: bool) -> np.ndarray:
    turned = pixels.transpose(1, 0, 2) if transpose else pixels
    return np.ascontiguousarray(turned[:: -1 if top_bottom else 1, :: -1 if left_right else 1])


def _turn(coefficients: np.ndarray, transpose: bool, left_right: bool, top_bottom: bool) -> np.ndarray:
    """Coefficients of the turned picture: mirroring changes the sign of the odd frequencies of its direction."""
    turned = coefficients.T.copy() if transpose else coefficients.copy()
    if left_right:
        turned[:, ::2] *= -1  # column 0 is frequency 1
    if top_bottom:
        turned[::2] *= -1
    return turned
