"""The two loops in C say what libjpeg and OpenCV say: 'sound' of nothing that libjpeg warns of, and the area filter's very bytes."""

from __future__ import annotations

import io
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from stages.images import fast
from stages.images.decode import verify
from stages.images.header import ImageError, read_header

compiled = pytest.mark.skipif(fast._library is None, reason="the loops in C were not compiled at installation")


def libjpeg_says_sound(data: bytes) -> bool:
    """A strict decode, in which a warning is an error."""
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_width=1, min_height=1, min_factor=1, strict=True)
    except ValueError:
        return False
    return True


def verdict(data: bytes) -> str:
    try:
        return str(verify(data, read_header(data)))
    except ImageError as error:
        return f"{error.code}: {error.detail}"


def some_jpeg(rng: np.random.Generator, most: int = 200) -> bytes:
    """A picture between noise and smoothness, of any size, sampling, quality and restart interval."""
    width, height = (int(side) for side in rng.integers(1, most, 2))
    coarse = rng.integers(0, 256, (1 + height // int(rng.integers(1, 16)), 1 + width // int(rng.integers(1, 16)), 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert("L" if rng.random() < 0.2 else "RGB")
    options: dict[str, object] = {"quality": int(rng.integers(5, 101)), "subsampling": int(rng.integers(0, 3)), "optimize": bool(rng.random() < 0.5)}
    if rng.random() < 0.3:
        options["restart_marker_blocks"] = int(rng.integers(1, 30))
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


def changed(data: bytes, rng: np.random.Generator) -> bytes:
    """Bits flipped, bytes replaced, dropped or put in, or the rest cut off; mostly behind the headers."""
    found = bytearray(data)
    first = 0 if rng.random() < 0.3 else data.index(b"\xff\xda")
    at, count, kind = int(rng.integers(first, len(data))), int(rng.integers(1, 9)), rng.integers(5)
    if kind == 0:
        found[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        found[at] = int(rng.integers(256))
    elif kind == 2:
        del found[at : at + count]
    elif kind == 3:
        found[at:at] = rng.bytes(count)
    else:
        found[at:] = b"\xff\xd9"
    return bytes(found)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler")
def test_the_loops_are_there_where_a_compiler_is() -> None:
    assert fast._library is not None


@compiled
def test_sound_files_of_all_kinds_are_told_without_libjpeg() -> None:
    rng = np.random.default_rng(0)
    for number in range(300):
        data = some_jpeg(rng)
        assert libjpeg_says_sound(data) and fast.jpeg_is_sound(data), number


@compiled
def test_what_libjpeg_warns_of_is_never_sound() -> None:
    rng, answers = np.random.default_rng(1), Counter()
    for _ in range(150):
        good = some_jpeg(rng)
        for _ in range(20):
            data = changed(good, rng)
            answers[fast.jpeg_is_sound(data), libjpeg_says_sound(data)] += 1
    assert answers[True, False] == 0
    assert answers[True, True] > 500 and answers[False, False] > 500, "changes of both kinds: those that still make a whole picture, and harm"


@compiled
def test_two_readers_find_what_one_would(jpeg: Callable[..., bytes]) -> None:
    """Damage anywhere in long data, before the middle, where the second reader starts, and behind it."""
    good = jpeg(640, 480, quality=97)
    assert len(good) > 40_000 and fast.jpeg_is_sound(good)
    start, rng, found = good.index(b"\xff\xda") + 20, np.random.default_rng(2), Counter()
    for at in np.linspace(start, len(good) - 4, 200).astype(int):
        data = bytearray(good)
        data[at] ^= 1 << int(rng.integers(8))
        same = bytes(data)
        found[fast.jpeg_is_sound(same), libjpeg_says_sound(same)] += 1
    assert found[True, False] == 0 and found[False, False] > 50


def damaged_ways(good: bytes, restarts: bytes) -> dict[str, bytes]:
    """Each with one thing wrong; `good` has no JFIF header."""
    size = good.index(b"\xff\xc0") + 5
    table = good.index(b"\xff\xc4")
    first, second = restarts.index(b"\xff\xd0"), restarts.index(b"\xff\xd1")
    height = int.from_bytes(good[size : size + 2], "big")
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x02"
    return {
        "a block is missing": good[:size] + (height + 16).to_bytes(2, "big") + good[size + 2 :],
        "blocks follow": good[:size] + (height - 16).to_bytes(2, "big") + good[size + 2 :],
        "a byte follows the last block": good[:-2] + b"\x00\xff\xd9",
        "cut, with an end": good[: len(good) // 2] + b"\xff\xd9",
        "no end": good[:-2],
        "a code of ones": good[:-200] + b"\xff\x00" * 50 + good[-100:],
        "another restart marker": restarts[:first] + b"\xff\xd3" + restarts[first + 2 :],
        "a restart marker is missing": restarts[:first] + restarts[first + 2 :],
        "an interval is missing": restarts[:first] + restarts[second:],
        "no Huffman table": good[:table] + good[table + 2 + int.from_bytes(good[table + 2 : table + 4], "big") :],
        "bytes between segments": good[:table] + b"\x00\x00" + good[table:],
        "an unknown colour transform": good[:table] + adobe + good[table:],
    }


@compiled
def test_each_kind_of_damage_or_oddness_is_left_to_libjpeg(jpeg: Callable[..., bytes]) -> None:
    good, restarts = jpeg(200, 160), jpeg(200, 160, restart_marker_blocks=7)
    without_jfif = good[:2] + good[4 + int.from_bytes(good[4:6], "big") :]
    assert fast.jpeg_is_sound(good) and fast.jpeg_is_sound(restarts) and fast.jpeg_is_sound(without_jfif)
    ways = damaged_ways(without_jfif, restarts)
    assert [way for way, data in ways.items() if fast.jpeg_is_sound(data)] == []
    assert not fast.jpeg_is_sound(good.replace(b"JFIF\0\x01", b"JFIF\0\x02", 1)), "another JFIF"


@compiled
def test_other_processes_than_baseline_are_left_to_libjpeg(jpeg: Callable[..., bytes]) -> None:
    assert not fast.jpeg_is_sound(jpeg(64, 48, progressive=True))
    assert not fast.jpeg_is_sound(b"") and not fast.jpeg_is_sound(b"\xff\xd8") and not fast.jpeg_is_sound(b"\xff\xd8\xff\xda\x00\x02")
    assert fast.jpeg_is_sound(jpeg(64, 48) + b"what follows the end is not the picture's")


@compiled
def test_verdicts_and_details_are_libjpegs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without our reader: the same on damaged and sound files, the collection of damaged ones included where it is at hand."""
    rng = np.random.default_rng(3)
    files = [changed(some_jpeg(rng), rng) for _ in range(300)]
    if place := os.environ.get("PAIRMILL_TEST_DATA"):
        bad = [path.read_bytes() for path in sorted(Path(place, "bad_images").rglob("*")) if path.is_file()]
        files += [data for data in bad if data.startswith(b"\xff\xd8")]
    ours = [verdict(data) for data in files]
    monkeypatch.setattr(fast, "_library", None)
    assert ours == [verdict(data) for data in files]
    assert len(set(ours)) > 3


@compiled
def test_shrunk_pixels_are_opencvs_to_the_bit() -> None:
    rng = np.random.default_rng(4)
    seen = 0
    for number in range(300):
        height, width = (int(side) for side in rng.integers(1, 700 if number % 10 == 0 else 150, 2))
        target = int(rng.integers(1, width + 1)), int(rng.integers(1, height + 1))
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8) if number % 4 else np.full((height, width, 3), int(rng.integers(256)), np.uint8)
        made = fast.shrink(pixels, *target)
        if made is not None:
            seen += 1
            assert np.array_equal(made, cv2.resize(pixels, target, interpolation=cv2.INTER_AREA)), (pixels.shape, target)
    assert seen > 200


@compiled
def test_shrinking_takes_views_and_leaves_the_rest_to_opencv() -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    view = pixels[::-1, 3:]
    made = fast.shrink(view, 50, 40)
    assert made is not None and np.array_equal(made, cv2.resize(np.ascontiguousarray(view), (50, 40), interpolation=cv2.INTER_AREA))
    assert fast.shrink(pixels, 121, 40) is None and fast.shrink(pixels, 50, 91) is None, "a side grows"
    assert fast.shrink(pixels, 60, 45) is None, "whole factors"
