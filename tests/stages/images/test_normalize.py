"""Resize modes as img2dataset means them, and bytes that stay as they came."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from stages.images.decode import decode
from stages.images.header import ImageError, read_header
from stages.images.normalize import ImageRules, normalize, resize_target, shrink


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("mode", "only_if_bigger", "size", "expected"),
    [
        ("no", False, (400, 300), (400, 300)), ("no", False, (40, 30), (40, 30)),
        ("keep_ratio", False, (400, 300), (133, 100)), ("keep_ratio", False, (40, 30), (133, 100)),
        ("keep_ratio", True, (400, 300), (133, 100)), ("keep_ratio", True, (400, 80), (400, 80)),
        ("keep_ratio_largest", False, (400, 300), (100, 75)), ("keep_ratio_largest", False, (40, 30), (100, 75)),
        ("keep_ratio_largest", True, (400, 80), (100, 20)), ("keep_ratio_largest", True, (40, 30), (40, 30)),
        ("center_crop", False, (400, 300), (100, 100)), ("center_crop", False, (40, 30), (100, 100)),
        ("center_crop", True, (400, 80), (400, 80)), ("border", False, (400, 300), (100, 100)),
        ("border", False, (40, 30), (100, 100)), ("border", True, (40, 30), (40, 30)),
    ],
)  # fmt: skip
def test_sizes_of_the_modes(
    jpeg: Callable[..., bytes], mode: str, only_if_bigger: bool, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    rules = ImageRules(resize_mode=mode, image_size=100, only_if_bigger=only_if_bigger)  # type: ignore[arg-type]
    data = jpeg(*size)
    image = normalize(data, rules)
    assert (image.width, image.height) == expected
    assert (image.original_width, image.original_height) == size
    assert decode(image.data).shape == (expected[1], expected[0], 3)
    assert (image.data is data) == (mode == "no" or expected == size), "bytes stay where no resize applies"


def reference(data: bytes, mode: str, size: int) -> np.ndarray:
    """What img2dataset 1.47 does (resizer.py), written out: whole decode, area or Lanczos by cv2, crop or white border."""
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    height, width = pixels.shape[:2]
    side = min(height, width) if mode in ("keep_ratio", "center_crop") else max(height, width)
    method = cv2.INTER_AREA if side > size else cv2.INTER_LANCZOS4
    pixels = cv2.resize(pixels, (round(width * size / side), round(height * size / side)), interpolation=method)
    height, width = pixels.shape[:2]
    if mode == "center_crop":
        top, left = (height - size) // 2, (width - size) // 2
        pixels = pixels[top : top + size, left : left + size]
    if mode == "border":
        top, left = (size - height) // 2, (size - width) // 2
        pixels = cv2.copyMakeBorder(pixels, top, size - height - top, left, size - width - left, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return pixels


@pytest.mark.parametrize("mode", ["keep_ratio", "keep_ratio_largest", "center_crop", "border"])
@pytest.mark.parametrize("size", [100, 256, 700])
def test_pixels_of_the_modes_on_real_photos(photos: list[Path], mode: str, size: int) -> None:
    """Equal where the whole picture was decoded, and within 2.5 grey levels where its transform was scaled first."""
    for path in photos[:6]:
        data = path.read_bytes()
        image = normalize(data, ImageRules(resize_mode=mode, image_size=size, encode_format="png", encode_quality=1))  # type: ignore[arg-type]
        ours, theirs = decode(image.data).astype(int), reference(data, mode, size).astype(int)
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).mean() <= (2.5 if size == 100 else 0.0), path.name


def test_lossless_resize_equals_the_reference_exactly() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (120, 90, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), "PNG")
    for mode in ("keep_ratio", "keep_ratio_largest", "center_crop", "border"):
        for size in (50, 200):
            image = normalize(data, ImageRules(resize_mode=mode, image_size=size, encode_format="png", encode_quality=1))
            assert (decode(image.data) == reference(data, mode, size)).all(), (mode, size)


def test_shrinking_by_way_of_floats_changes_no_bit() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = rng.integers(3, 400, 2)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        target = tuple(int(max(1, side // rng.uniform(1, 6))) for side in (width, height))
        assert (shrink(pixels, target) == cv2.resize(pixels, target, interpolation=cv2.INTER_AREA)).all(), (pixels.shape, target)


def test_border_is_white_and_centred(jpeg: Callable[..., bytes]) -> None:
    image = normalize(jpeg(200, 100), ImageRules(resize_mode="border", image_size=80, encode_format="png", encode_quality=1))
    pixels = decode(image.data)
    assert (pixels[:20] == 255).all() and (pixels[60:] == 255).all() and not (pixels[20:60] == 255).all(axis=(0, 2)).any()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("check", ["decode", "header"])
def test_usable_files_keep_their_bytes(format: str, check: str) -> None:
    for mode in ("RGB", "L"):
        data = saved(Image.new(mode, (30, 20)), format)
        image = normalize(data, ImageRules(check=check))  # type: ignore[arg-type]
        assert image.data is data and (image.width, image.height) == (30, 20)
        assert image.format == {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[format]


def changed_files() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb = Image.new("RGB", (30, 20), "red")
    return {
        "turned": saved(rgb, "JPEG", exif=exif), "alpha": saved(rgb.convert("RGBA"), "PNG"), "palette": saved(rgb.convert("P"), "PNG"),
        "cmyk": saved(rgb.convert("CMYK"), "JPEG"), "gif": saved(rgb, "GIF"), "bmp": saved(rgb, "BMP"), "tiff": saved(rgb, "TIFF"),
        "grey 16": saved(Image.new("I;16", (30, 20)), "PNG"),
        "moving": saved(rgb, "WEBP", save_all=True, append_images=[Image.new("RGB", (30, 20), "blue")]),
    }  # fmt: skip


@pytest.mark.parametrize("kind", changed_files())
def test_the_others_are_encoded_anew(kind: str) -> None:
    for format in ("jpg", "png", "webp"):
        image = normalize(changed_files()[kind], ImageRules(encode_format=format, encode_quality=9))  # type: ignore[arg-type]
        header = read_header(image.data)
        size = (20, 30) if kind == "turned" else (30, 20)
        assert (header.format, header.orientation, header.plain, (header.width, header.height)) == (format, 1, True, size)
        assert (image.width, image.height, image.original_width, image.original_height) == (*size, *size)


def test_quality_is_used(jpeg: Callable[..., bytes]) -> None:
    def size(format: str, quality: int) -> int:
        rules = ImageRules(resize_mode="keep_ratio", image_size=100, encode_format=format, encode_quality=quality)  # type: ignore[arg-type]
        return len(normalize(jpeg(300, 300), rules).data)

    assert size("jpg", 30) < size("jpg", 95) and size("webp", 30) < size("webp", 95) and size("png", 9) < size("png", 0)


def test_check_decode_finds_what_check_header_cannot(jpeg: Callable[..., bytes]) -> None:
    data = jpeg(400, 300)
    broken = data[: len(data) // 2]
    assert normalize(broken, ImageRules(check="header")).data is broken
    with pytest.raises(ImageError) as raised:
        normalize(broken, ImageRules(check="decode"))
    assert raised.value.code == "corrupt_image"


def test_extreme_shapes_keep_one_pixel() -> None:
    assert resize_target(10_000, 3, ImageRules(resize_mode="keep_ratio_largest", image_size=100)) == (100, 1)
    with pytest.raises(ImageError, match="encoded as webp"):
        normalize(saved(Image.new("RGB", (20_000, 2)), "PNG"), ImageRules(resize_mode="keep_ratio", image_size=4, encode_format="webp"))
