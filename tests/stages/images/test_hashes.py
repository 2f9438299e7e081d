"""Hashes of pixels: turned copies, flat pictures, and what encoding and resizing do to them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from stages.demo import image_bytes
from stages.images.decode import decode
from stages.images.hashes import hash_image

pytest.importorskip("pdqhash")


def picture(seed: int, width: int = 320, height: int = 240) -> np.ndarray:
    """Coarse noise, enlarged: as busy as a photo."""
    draw = np.random.default_rng(seed)
    small = draw.integers(0, 256, (24, 32, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def bits_off(one: bytes, other: bytes) -> int:
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()


def test_another_picture_is_far_and_a_copy_is_near() -> None:
    found = [hash_image(picture(seed)) for seed in range(6)]
    assert all(len(one.phash) == 8 and one.pdq is not None and len(one.pdq) == 32 for one in found)
    for seed, one in enumerate(found):
        saved = decode(image_bytes.encode(picture(seed), "jpg", 60))
        half = cv2.resize(saved, (160, 120), interpolation=cv2.INTER_AREA)
        for copy in (saved, half):
            again = hash_image(copy)
            assert bits_off(one.phash, again.phash) <= 6 and bits_off(one.pdq, again.pdq) <= 30  # type: ignore[arg-type]
        for other in found[seed + 1 :]:
            assert bits_off(one.phash, other.phash) > 16 and bits_off(one.pdq, other.pdq) > 70  # type: ignore[arg-type]


def test_equal_pixels_have_equal_hashes_and_the_phash_is_what_it_was() -> None:
    assert hash_image(picture(1)) == hash_image(picture(1).copy())
    ramp = np.repeat(np.repeat(np.arange(64, dtype=np.uint8)[None, :, None] * 4, 64, 0), 3, 2)
    assert hash_image(ramp, pdq=False).phash == hash_image(ramp + np.uint8(3), pdq=False).phash  # brightness is no frequency


@pytest.mark.parametrize(("mirrored", "rotated", "count"), [(False, False, 0), (True, False, 1), (False, True, 3), (True, True, 7)])
def test_turned_copies_have_the_hashes_that_turning_the_picture_gives(mirrored: bool, rotated: bool, count: int) -> None:
    pixels = picture(4, 240, 240)
    found = hash_image(pixels, mirrored=mirrored, rotated=rotated)
    assert len(found.phash_turned) == 8 * count and len(found.pdq_turned) == 32 * count
    turned = [np.rot90(pixels, quarter) for quarter in (1, 2, 3)] if rotated else []
    if mirrored:
        turned += [pixels[:, ::-1]] + ([np.rot90(pixels[:, ::-1], quarter) for quarter in (1, 2, 3)] if rotated else [])
    hashes = [hash_image(np.ascontiguousarray(one)) for one in turned]
    for size, name in ((8, "phash"), (32, "pdq")):
        joined = getattr(found, f"{name}_turned")
        listed = sorted(joined[at : at + size] for at in range(0, len(joined), size))
        wanted = sorted(getattr(one, name) for one in hashes)
        assert all(bits_off(one, other) <= (2 if name == "phash" else 0) for one, other in zip(listed, wanted, strict=True))


def test_quality_tells_flat_pictures() -> None:
    flat = np.full((100, 100, 3), 200, np.uint8)
    sky = np.repeat(np.repeat(np.linspace(120, 220, 100).astype(np.uint8)[:, None, None], 100, 1), 3, 2)
    assert hash_image(flat).quality == 0 and hash_image(flat).pdq_quality == 0
    assert hash_image(sky).quality < 20 and hash_image(sky).pdq_quality < 20  # type: ignore[operator]
    busy = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    found = hash_image(cv2.resize(busy, (200, 200), interpolation=cv2.INTER_NEAREST))
    assert found.quality == found.pdq_quality == 100


def test_a_large_picture_hashes_like_its_reduced_copy() -> None:
    large = picture(9, 1600, 1200)
    small = cv2.resize(large, (400, 300), interpolation=cv2.INTER_AREA)
    one, other = hash_image(large), hash_image(small)
    assert bits_off(one.phash, other.phash) <= 2 and bits_off(one.pdq, other.pdq) <= 16  # type: ignore[arg-type]


@pytest.mark.parametrize("edges", [(9, 9, 9, 9), (30, 0, 0, 0), (0, 25, 40, 0)])
def test_a_border_of_one_colour_is_cut_off_before_hashing(edges: tuple[int, int, int, int]) -> None:
    own = hash_image(picture(3), trimmed=True)
    for colour in ((255, 255, 255), (0, 0, 0), (200, 30, 60)):
        bordered = decode(image_bytes.encode(cv2.copyMakeBorder(picture(3), *edges, cv2.BORDER_CONSTANT, value=colour), "jpg", 70))
        found = hash_image(bordered, trimmed=True)
        assert bits_off(own.phash, found.phash) <= 4 and bits_off(own.pdq, found.pdq) <= 31  # type: ignore[arg-type]
    if min(edges):
        assert bits_off(own.phash, hash_image(bordered).phash) > 6, "the border is what moves the hash"


def test_what_is_no_border_is_not_cut_off() -> None:
    assert hash_image(picture(3), trimmed=True) == hash_image(picture(3))
    sky = picture(4)
    sky[:100] = (120, 160, 230)  # more than a quarter of the height
    assert hash_image(sky, trimmed=True) == hash_image(sky)
    plain = np.full((100, 100, 3), 200, np.uint8)
    assert hash_image(plain, trimmed=True) == hash_image(plain)
