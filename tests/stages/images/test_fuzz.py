"""Mutated files through the decode path: each ends as an image that others can read, or as a declared failure."""

from __future__ import annotations

import io
import os
from collections import Counter
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from schemas.outcome import Failure
from stages.images.decode import decode
from stages.images.decoders import DecoderLimits, Normalized, sandbox_possible
from stages.images.normalize import ImageRules
from stages.images.sandbox import Sandbox

DECLARED = {"not_an_image", "unsupported_format", "corrupt_image", "pixel_limit", "decoder_memory"}
RULES = (
    ImageRules(), ImageRules(resize_mode="border", image_size=64), ImageRules(resize_mode="keep_ratio", image_size=40, encode_format="png", encode_quality=1),
    ImageRules(resize_mode="center_crop", image_size=300, encode_format="webp"), ImageRules(check="header"),
    ImageRules(resize_mode="keep_ratio_largest", image_size=32, only_if_bigger=True),
)  # fmt: skip
ODD_NUMBERS = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\0\x80", b"\0\x01\0\0", b"\xff\xff", b"\0\0"]


def made_images() -> list[bytes]:
    """A small image of each format and mode that Pillow writes."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize((64, 48))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for format, modes in {
        "JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "RGBA", "P", "LA", "I;16", "1"), "WEBP": ("RGB", "RGBA"), "GIF": ("P", "L"), "BMP": ("RGB", "P", "1"),
        "TIFF": ("RGB", "CMYK", "F", "I;16", "LAB"), "AVIF": ("RGB", "RGBA"), "HEIF": ("RGB", "RGBA", "L"), "JPEG2000": ("RGB",), "ICO": ("RGBA",),
        "TGA": ("RGBA",), "PPM": ("RGB",),
    }.items():  # fmt: skip
        for mode in modes:
            for options in ({}, {"exif": exif}) if format in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF") else ({},):
                out = io.BytesIO()
                (noise.convert("L") if mode == "I;16" else noise).convert(mode if mode != "I;16" else "L").convert(mode).save(out, format, **options)
                found.append(out.getvalue())
    return found


def mutated(seeds: list[bytes], rng: np.random.Generator) -> bytes:
    """One to four changes of one file: flipped bits, cuts, odd numbers, chunks doubled, dropped or taken from another file."""
    data = bytearray(seeds[rng.integers(len(seeds))])
    for _ in range(rng.integers(1, 5)):
        if len(data) < 8:
            break
        # Headers are short and decide most: half of all places lie in the first 512 bytes.
        at = int(rng.integers(0, min(len(data), 512) if rng.random() < 0.5 else len(data)))
        length = int(rng.integers(1, 1 + min(len(data) - at, 256)))
        kind = rng.integers(0, 8)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            data[at : at + 8] = rng.integers(0, 256, len(data[at : at + 8]), dtype=np.uint8).tobytes()
        elif kind == 2:
            number = ODD_NUMBERS[rng.integers(len(ODD_NUMBERS))]
            data[at : at + len(number)] = number
        elif kind == 3:
            del data[max(at, 8) :]
        elif kind == 4:
            del data[at : at + length]
        elif kind == 5:
            data[at:at] = data[at : at + length] * int(rng.integers(1, 4))
        elif kind == 6:
            other = seeds[rng.integers(len(seeds))]
            place = int(rng.integers(0, max(1, len(other) - length)))
            data[at : at + length] = other[place : place + length]
        else:
            other = seeds[rng.integers(len(seeds))]
            data[at:] = other[min(at, len(other)) :]
    return bytes(data)


def seeds() -> list[bytes]:
    """Made images, and the damaged ones where there are some (those that are larger than 100 KB apart)."""
    folder = os.environ.get("PAIRMILL_TEST_DATA")
    files = sorted(path for path in Path(folder, "bad_images").rglob("*") if path.is_file() and path.stat().st_size < 100_000) if folder else []
    return made_images() * 4 + [path.read_bytes() for path in files if path.suffix not in (".md", ".jsonl")]


def judge(data: bytes, rules: ImageRules, result: Normalized | Failure) -> str:
    """'' or what is wrong with a result."""
    if isinstance(result, Failure):
        return "" if result.code in DECLARED else f"{result.code}: {result.detail}"
    image = result.image
    if rules.check == "header" and image.data is data:
        return ""  # no one has looked at its pixels
    if decode(image.data, pixel_limit=1 << 30).shape != (image.height, image.width, 3):
        return f"{image.format} of another size than {image.width} x {image.height}"
    with Image.open(io.BytesIO(image.data)) as seen:
        pixels = np.asarray(seen.convert("RGB"))
    return "" if pixels.shape == (image.height, image.width, 3) else f"Pillow sees {pixels.shape}, not {image.width} x {image.height}"


@pytest.mark.skipif(not sandbox_possible(), reason="no sandbox on this system")
@pytest.mark.parametrize("n", [500, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_mutated_files(n: int, tmp_path: Path) -> None:
    rng, every, box = np.random.default_rng(n), seeds(), Sandbox(DecoderLimits(timeout_s=20))
    under_way: list[tuple[int, bytes, ImageRules, Future]] = []
    ends: Counter[str] = Counter()
    wrong = []
    for number in range(n):
        data, rules = mutated(every, rng), RULES[rng.integers(len(RULES))]
        under_way.append((number, data, rules, box.normalize(data, rules)))
        while len(under_way) > (16 if number < n - 1 else 0):
            at, data, rules, future = under_way.pop(0)
            result = future.result(120)
            ends[str(result.code) if isinstance(result, Failure) else "kept"] += 1
            fault = judge(data, rules, result)
            if fault:
                wrong.append(f"{at}: {fault}")
                (tmp_path / f"{at}").write_bytes(data)
    box.close()
    print(dict(ends))
    assert wrong == [], f"the files are in {tmp_path}"
    assert ends["kept"] > n / 20 and ends["corrupt_image"] > n / 5, "mutations are neither harmless nor hopeless"
