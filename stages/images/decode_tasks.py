"""What can be asked of a decoder: a name and options as JSON. Answers are plain facts and bytes, so nothing is pickled.

Imports numpy and the codecs only, for this is what a decoder process loads.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from stages.images.crop import crop_image
from stages.images.decode import decode, verify
from stages.images.fit import fit_image
from stages.images.header import ImageError, read_header
from stages.images.normalize import ImageRules, normalize

Facts = dict[str, Any]
Payload = bytes | np.ndarray


def task_bytes(name: str, **options: Any) -> bytes:
    """A task as it travels; equal options give equal bytes."""
    return json.dumps([name, options]).encode()


def perform(task: bytes, data: bytes) -> tuple[Facts, Payload]:
    """Do a task on an image's bytes: facts, and pixels or encoded bytes. An image at fault is the fact `failure`: code, detail.

    Raises MemoryError; any other exception is an error of this program.
    """
    name, options = _parsed(task)
    try:
        return TASKS[name](data, **options)
    except ImageError as error:
        return {"failure": [str(error.code), error.detail]}, b""


@functools.lru_cache(maxsize=64)
def _parsed(task: bytes) -> tuple[str, dict[str, Any]]:
    name, options = json.loads(task)
    return name, options


def _normalize(data: bytes, **rules: Any) -> tuple[Facts, Payload]:
    """The image to store and the SHA-256 of both; `kept`: it is the bytes as they came, which are not sent back."""
    image = normalize(data, ImageRules(**rules))
    raw_digest, kept = hashlib.sha256(data).hexdigest(), image.data is data
    facts = {
        "kept": kept, "format": image.format, "width": image.width, "height": image.height, "original_width": image.original_width,
        "original_height": image.original_height, "raw_sha256": raw_digest,
        "image_sha256": raw_digest if kept else hashlib.sha256(image.data).hexdigest(),
    }  # fmt: skip
    return facts, b"" if kept else image.data


def _check(data: bytes, pixel_limit: int) -> tuple[Facts, Payload]:
    """Read all of the image's data; its format."""
    header = read_header(data)
    verify(data, header, pixel_limit)
    return {"format": header.format}, b""


def _pixels(data: bytes, **limits: int) -> tuple[Facts, Payload]:
    pixels = decode(data, **limits)
    return {"shape": pixels.shape}, np.ascontiguousarray(pixels)


def _crop(data: bytes, **view: Any) -> tuple[Facts, Payload]:
    pixels = crop_image(data, **view)
    return {"shape": pixels.shape}, np.ascontiguousarray(pixels)


def _fit(data: bytes, max_pixels: int) -> tuple[Facts, Payload]:
    pixels = fit_image(data, max_pixels)
    return {"shape": pixels.shape}, np.ascontiguousarray(pixels)


def _hashes(data: bytes, pixel_limit: int, **wanted: bool) -> tuple[Facts, Payload]:
    """Perceptual hashes, bytes as hex, and the thumbnail where asked for. A large JPEG is decoded at the scale that hashing needs."""
    from stages.images.hashes import WORKING_SIDE, hash_image

    found = hash_image(decode(data, pixel_limit=pixel_limit, min_width=WORKING_SIDE, min_height=WORKING_SIDE), **wanted)
    facts = {name: value.hex() if isinstance(value, bytes) else value for name, value in asdict(found).items() if name != "thumbnail"}
    return facts, found.thumbnail


def _looks(data: bytes, pixel_limit: int, mirrored: bool) -> tuple[Facts, Payload]:
    """Hashes of how a row is looked at (hex), and the views, one behind another."""
    from stages.images.leaks import SIDE, looks

    found = looks(decode(data, pixel_limit=pixel_limit, min_width=2 * SIDE, min_height=2 * SIDE), mirrored)
    return {"hashes": [look.hash.hex() for look in found]}, np.stack([look.view for look in found])


def _indexed(data: bytes, pixel_limit: int, pdq: bool) -> tuple[Facts, Payload]:
    """What an index keeps of an image, as hex; see `stages.images.leaks.index_picture`."""
    from stages.images.hashes import WORKING_SIDE, hash_image
    from stages.images.leaks import index_picture

    pixels = decode(data, pixel_limit=pixel_limit, min_width=WORKING_SIDE, min_height=WORKING_SIDE)
    hashes, box, thumb = index_picture(pixels)
    plain = hash_image(pixels, pdq=pdq)
    facts = {"phash": plain.phash.hex(), "phash_quality": plain.quality, "windows": hashes.hex(), "box": box.hex()}
    facts |= {"pdq": plain.pdq.hex(), "pdq_quality": plain.pdq_quality} if plain.pdq is not None else {}
    return facts, thumb


TASKS: dict[str, Callable[..., tuple[Facts, Payload]]] = {
    "normalize": _normalize, "check": _check, "pixels": _pixels, "crop": _crop, "fit": _fit, "hashes": _hashes,
    "looks": _looks, "indexed": _indexed,
}  # fmt: skip
