"""Headers and pixels of every kind of image, and what happens to those that are cut, damaged or none at all."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageOps

from stages.images.decode import decode, upright, verify
from stages.images.header import ImageError, read_header, sniff

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff", "AVIF": "avif", "HEIF": "heic"}


def picture(width: int = 60, height: int = 40) -> Image.Image:
    """Four flat quarters (red, green, blue, yellow), so that turns and colours show."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (250, 10, 10)
    pixels[: height // 2, width // 2 :] = (10, 250, 10)
    pixels[height // 2 :, : width // 2] = (10, 10, 250)
    pixels[height // 2 :, width // 2 :] = (250, 250, 10)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def code(data: bytes, **options: int) -> str:
    with pytest.raises(ImageError) as raised:
        decode(data, **options)
    assert raised.value.detail
    return raised.value.code


def close(pixels: np.ndarray, image: Image.Image, tolerance: int = 12) -> bool:
    """Equal away from the borders of the quarters, where lossy formats ring."""
    wanted = np.asarray(image.convert("RGB")).astype(int)
    return pixels.shape == wanted.shape and np.percentile(np.abs(pixels.astype(int) - wanted), 85) <= tolerance


@pytest.mark.parametrize("format", FORMATS)
def test_formats_sizes_and_pixels(format: str) -> None:
    data = encoded(picture(), format, **({"quality": 95} if format in ("JPEG", "WEBP", "AVIF", "HEIF") else {}))
    header = read_header(data)
    assert sniff(data) == FORMATS[format] == header.format
    assert (header.width, header.height, header.orientation) == (60, 40, 1)
    pixels = decode(data)
    assert pixels.dtype == np.uint8 and close(pixels, picture())


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
def test_cut_jpeg_is_corrupt_and_never_padded(jpeg: Callable[..., bytes], cut: float, progressive: bool) -> None:
    data = jpeg(400, 300, progressive=progressive)
    short = data[: int(len(data) * cut)]
    assert code(short) == "corrupt_image"
    assert code(short, min_width=50, min_height=50) == "corrupt_image", "scaled decoding must see it too"
    with pytest.raises(ImageError, match="remature end"):
        verify(short, read_header(data))


def test_jpeg_without_its_end_marker_is_corrupt(jpeg: Callable[..., bytes]) -> None:
    assert code(jpeg(100, 100)[:-2]) == "corrupt_image"


def test_jpeg_that_ends_early_but_has_an_end_marker_is_corrupt(jpeg: Callable[..., bytes]) -> None:
    """libjpeg only warns and fills the rest with grey."""
    data = jpeg(400, 300)
    assert code(data[: len(data) // 2] + b"\xff\xd9") == "corrupt_image"


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"])
def test_cut_files_are_corrupt(format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8))
    data = encoded(noise, format)
    for share in (0.2, 0.4, 0.6, 0.8, 0.95):
        assert code(data[: int(len(data) * share)]) == "corrupt_image"
    assert code(data[:12] if format != "BMP" else data[:20]) in ("corrupt_image", "unsupported_format")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, object] = {"quality": 95} if format in ("JPEG", "WEBP", "AVIF", "HEIF") else {}
    image = picture()
    if format == "HEIF":  # its writer takes the orientation from here, and stores it as the standard wants
        image.info["exif"] = exif.tobytes()
    else:
        options["exif"] = exif
    data = encoded(image, format, **options)
    header = read_header(data)
    assert header.orientation == (1 if format in ("TIFF", "HEIF") else orientation), "these are turned while they are read"
    assert header.shown_size == ((60, 40) if orientation < 5 else (40, 60))
    tagged = picture()
    tagged.getexif()[0x0112] = orientation
    assert close(decode(data), ImageOps.exif_transpose(tagged))


def test_upright_matches_the_standard_for_every_value() -> None:
    """EXIF 2.32, 4.6.4: where row 0 and column 0 of the coded picture lie in the upright one."""
    coded = np.arange(6, dtype=np.uint8).reshape(2, 3, 1).repeat(3, 2)
    wanted = {
        1: [[0, 1, 2], [3, 4, 5]], 2: [[2, 1, 0], [5, 4, 3]], 3: [[5, 4, 3], [2, 1, 0]], 4: [[3, 4, 5], [0, 1, 2]],
        5: [[0, 3], [1, 4], [2, 5]], 6: [[3, 0], [4, 1], [5, 2]], 7: [[5, 2], [4, 1], [3, 0]], 8: [[2, 5], [1, 4], [0, 3]],
    }  # fmt: skip
    for orientation, pixels in wanted.items():
        assert upright(coded, orientation)[:, :, 0].tolist() == pixels, orientation


def test_broken_exif_is_no_orientation(jpeg: Callable[..., bytes]) -> None:
    data = jpeg(64, 48)
    for block in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0"):
        segment = b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block
        header = read_header(data[:2] + segment + data[2:])
        assert (header.orientation, header.width) == (1, 64)


def test_alpha_lies_over_white() -> None:
    image = picture().convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1))))
    pixels = decode(encoded(image, "PNG"))
    source = np.asarray(image).astype(float)
    alpha = source[..., 3:] / 255
    assert np.abs(pixels - (source[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1.5


def test_transparent_palette_lies_over_white() -> None:
    image = Image.new("P", (10, 10), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (0, 0, 5, 10))
    pixels = decode(encoded(image, "PNG", transparency=0))
    assert pixels[5, 2].tolist() == [0, 0, 255] and pixels[5, 8].tolist() == [255, 255, 255]


def test_cmyk_is_converted() -> None:
    data = encoded(picture().convert("CMYK"), "JPEG", quality=95)
    assert not read_header(data).plain
    assert close(decode(data), picture())


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA"])
def test_greys_and_palettes_become_rgb(mode: str) -> None:
    image = picture().convert(mode)
    assert close(decode(encoded(image, "PNG")), image, tolerance=0)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_high_byte(format: str) -> None:
    deep = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    data = encoded(Image.fromarray(deep), format)
    assert not read_header(data).plain
    assert (decode(data)[:, :, 1] == deep >> 8).all()


def test_16_bit_rgb_png_is_not_plain() -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", 65535, 32768, 0) * 4 for _ in range(4))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks)
    assert not read_header(data).plain
    assert decode(data)[0, 0].tolist() == [255, 128, 0]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(format: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50, **options)
    assert not read_header(data).plain
    assert decode(data)[5, 5].tolist() == [255, 0, 0]


def test_pixel_limit_is_judged_by_the_header_alone(jpeg: Callable[..., bytes]) -> None:
    data = jpeg(100, 50)
    assert decode(data, pixel_limit=5000).shape == (50, 100, 3)
    assert code(data, pixel_limit=4999) == "pixel_limit"
    bomb = encoded(Image.new("1", (10000, 10000)), "PNG")
    assert len(bomb) < 200_000 and code(bomb) == "pixel_limit"
    claims = bytearray(data)
    at = claims.index(b"\xff\xc0")
    claims[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    assert code(bytes(claims)) == "pixel_limit"


def claiming(format: str) -> bytes:
    """A small file whose header claims far more pixels than anyone wants."""
    data = bytearray(encoded(picture(), format))
    if format == "GIF":
        data[6:10] = struct.pack("<HH", 60000, 60000)
        at = data.index(b"\x2c\0\0\0\0") + 5
        data[at : at + 4] = struct.pack("<HH", 60000, 60000)
    elif format == "BMP":
        data[18:26] = struct.pack("<ii", 20000, 20000)
    elif format == "TIFF":
        for tag in (256, 257):
            at = data.index(struct.pack("<HHI", tag, 4, 1)) if struct.pack("<HHI", tag, 4, 1) in data else data.index(struct.pack("<HHI", tag, 3, 1))
            data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, 20000)
    elif format == "WEBP":
        canvas = b"VP8X" + struct.pack("<IB3x", 10, 0) + (16000 - 1).to_bytes(3, "little") * 2
        data[12:12] = canvas
        data[4:8] = struct.pack("<I", len(data) - 8)
    else:  # AVIF, HEIF: the spatial extents (ISO/IEC 23008-12, 6.5.3)
        at = data.index(b"ispe") + 8
        data[at : at + 8] = struct.pack(">II", 12000, 12000)
    return bytes(data)


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "WEBP", "AVIF", "HEIF"])
def test_bombs_of_all_formats_are_told_by_their_headers(format: str) -> None:
    """Each file is small, and nothing of the size that it claims is allocated."""
    data = claiming(format)
    tracemalloc.start()
    found = code(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found in ({"pixel_limit", "corrupt_image"} if format == "WEBP" else {"pixel_limit"}) and peak < 10 << 20


def test_png_that_is_damaged_behind_its_picture_is_whole() -> None:
    data = encoded(picture(), "PNG")
    cut = data[:-7]
    assert (decode(cut) == decode(data)).all()
    assert verify(data, read_header(data)) is True
    assert verify(cut, read_header(cut)) is False, "other readers may refuse it"
    assert code(data[:-40]) == "corrupt_image", "the end of the picture itself"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"<!DOCTYPE html><html><body>gone</body></html>", "not_an_image"), (b"  <html>", "not_an_image"),
        (b'{"error": "expired"}', "not_an_image"), (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "not_an_image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported_format"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported_format"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64, "corrupt_image"), (b"%PDF-1.4\n", "unsupported_format"),
        (b"", "unsupported_format"), (b"\xff\xd8\xff", "corrupt_image"), (b"GIF89a", "corrupt_image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "corrupt_image"),
    ],
)  # fmt: skip
def test_what_is_no_image_has_its_reason(data: bytes, expected: str) -> None:
    assert code(data) == expected


def test_scaled_decoding_is_never_below_the_asked_size(jpeg: Callable[..., bytes]) -> None:
    data = jpeg(800, 600)
    for wanted in (10, 100, 150, 290, 310):
        pixels = decode(data, min_width=wanted, min_height=wanted)
        assert min(pixels.shape[:2]) >= wanted and pixels.shape[1] * 3 == pixels.shape[0] * 4
    assert decode(data, min_width=100, min_height=100).shape == (150, 200, 3)


def test_scaled_decoding_asks_for_upright_sizes() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(800, 400), "JPEG", exif=exif)
    assert decode(data, min_width=100, min_height=390).shape == (400, 200, 3)


def test_verify_agrees_with_decode_on_mutated_files(jpeg: Callable[..., bytes]) -> None:
    rng = np.random.default_rng(1)
    good, answers = jpeg(120, 90), []
    for _ in range(400):
        data = bytearray(good)
        for at in rng.integers(200, len(data), rng.integers(1, 4)):
            data[at] = rng.integers(0, 256)
        both = []
        for action in (lambda raw: decode(raw), lambda raw: verify(raw, read_header(raw))):
            try:
                action(bytes(data))
                both.append("ok")
            except ImageError as error:
                both.append(str(error.code))
        answers.append(tuple(both))
    assert all(first == second for first, second in answers)
    assert len({first for first, _ in answers}) > 1, "no mutation did any harm"
