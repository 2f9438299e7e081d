"""What an image is, read from its first bytes: format, size in pixels, orientation. Nothing is decoded here."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import pillow_heif
from PIL import AvifImagePlugin, Image, UnidentifiedImageError

from schemas.outcome import FailureCode, cap_detail

# Our own limit is a parameter, checked before any pixel is decoded. Pillow's is for pictures inside of pictures (ICO, ICNS).
Image.MAX_IMAGE_PIXELS = 1 << 29  # it refuses what has twice as many
Image.init()
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # one image per decoder
pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)

# Readers that Pillow may use on untrusted bytes. Left out: EPS, which starts a program, and those without a decoder.
PILLOW_FORMATS = (
    "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "HEIF", "JPEG", "JPEG2000", "ICO", "ICNS", "CUR", "PPM", "PSD", "TGA",
    "PCX", "DCX", "DDS", "SGI", "QOI", "BLP", "FITS", "FLI", "FTEX", "GBR", "IM", "MSP", "PCD", "PIXAR", "SUN", "XBM", "XPM",
    "XVThumb", "IMT", "SPIDER", "MCIDAS",
)  # fmt: skip

# What Pillow raises on damaged files, beside its documented OSError and SyntaxError.
PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError, AttributeError, RuntimeError,
    struct.error, zlib.error,
)  # fmt: skip

_NO_MEMORY = ("out of memory", "insufficient memory", "cannot allocate", "memory allocation", "failed to allocate")
_EXIF_ORIENTATION = 0x0112
_EXTENTS_BOX = b"\0\0\0\x14ispe\0\0\0\0"


class ImageError(ValueError):
    """Bytes that cannot become a stored image: a FailureCode and what was wrong."""

    def __init__(self, code: FailureCode, detail: str):
        super().__init__(detail)
        self.code = code
        self.detail = cap_detail(detail)


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Facts from the header. `width`, `height`: pixels as coded; `orientation`: EXIF value 1 to 8; `plain`: a still
    image in 8-bit RGB or grey, without transparency, that every reader shows alike; `coded_pixels`: where a codec makes more
    pixels than are shown."""

    format: str
    width: int
    height: int
    orientation: int
    plain: bool
    coded_pixels: int = 0

    @property
    def shown_size(self) -> tuple[int, int]:
        """Width and height after the orientation is applied (values 5 to 8 turn by 90 degrees)."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


_SIGNATURES = (
    (b"\xff\xd8\xff", "jpg"), (b"GIF87a", "gif"), (b"GIF89a", "gif"), (b"BM", "bmp"), (b"II*\0", "tiff"), (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"), (b"MM\0+", "tiff"), (b"\0\0\0\x0cjP  ", "jpeg2000"), (b"\xffO\xffQ", "jpeg2000"), (b"\0\0\1\0", "ico"),
    (b"\0\0\2\0", "cur"), (b"8BPS", "psd"), (b"DDS ", "dds"), (b"icns", "icns"), (b"SIMPLE  =", "fits"), (b"qoif", "qoi"),
    (b"P7 332", "xvthumb"), (b"DanM", "msp"), (b"LinS", "msp"),
)  # fmt: skip
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"})


def sniff(data: bytes) -> str | None:
    """Format by magic bytes: jpg, png, webp, gif, bmp, tiff, avif, heic, svg, html, ...; None where nothing is known."""
    if b"IHDR" in data[:20] and b"NG" in data[:4]:  # the eight bytes before it are made to show damage
        return "png"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    if data[4:8] == b"ftyp":
        return _ftyp_brand(data)
    if data[4:6] in (b"\x11\xaf", b"\x12\xaf"):
        return "fli"
    return _sniff_text(data)


def _ftyp_brand(data: bytes) -> str | None:
    """AVIF or HEIC by the brands of the ISO base media file type box (ISO/IEC 14496-12)."""
    size = min(max(int.from_bytes(data[:4], "big"), 16), 256)
    brands = {data[8:12]} | {data[at : at + 4] for at in range(16, size, 4)}
    if brands & {b"avif", b"avis"}:
        return "avif"
    return "heic" if brands & _HEIC_BRANDS else None


def _sniff_text(data: bytes) -> str | None:
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<svg", b"<?xml", b"<!doctype svg")):
        return "svg" if b"<svg" in data[:65536].lower() or b"doctype svg" in head else "html"
    return "html" if head.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<script", b"{", b"[")) else None


def read_header(data: bytes) -> ImageHeader:
    """Facts of an image from its header. Raises ImageError: not_an_image, unsupported_format, corrupt_image."""
    header = own_header(data)
    if header is not None:
        return header
    with open_image(data, sniff(data)) as image:
        return _pillow_header(image, data)


def own_header(data: bytes) -> ImageHeader | None:
    """Facts of an ordinary JPEG, read without any codec; None for what only a codec can judge. Raises ImageError."""
    kind = sniff(data)
    if kind == "html":
        raise ImageError(FailureCode.NOT_AN_IMAGE, f"text or HTML instead of an image: {data[:60]!r}")
    if kind == "svg":
        raise ImageError(FailureCode.UNSUPPORTED_FORMAT, "SVG is a drawing, not pixels")
    return _jpeg_header(data) if kind == "jpg" else None


def open_image(data: bytes, kind: str | None) -> Image.Image:
    """Pillow's image with its header read. `kind` is what `sniff` said. Raises ImageError."""
    try:
        return Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)
    except UnidentifiedImageError as error:
        if kind is None:
            raise ImageError(FailureCode.UNSUPPORTED_FORMAT, f"not a known image format: {data[:16]!r}") from error
        raise ImageError(FailureCode.CORRUPT_IMAGE, f"{kind}: damaged header") from error
    except Image.DecompressionBombError as error:
        raise ImageError(FailureCode.PIXEL_LIMIT, str(error)) from error
    except PILLOW_ERRORS as error:
        raise damaged(kind or "image", error) from error


def damaged(kind: str, error: Exception) -> ImageError:
    """What a codec's exception says of an image. Raises MemoryError where it says that memory ran out."""
    message = f"{kind}: {type(error).__name__}: {error}"
    if any(sign in message.lower() for sign in _NO_MEMORY):
        raise MemoryError(message) from error
    return ImageError(FailureCode.CORRUPT_IMAGE, message)


def _pillow_header(image: Image.Image, data: bytes) -> ImageHeader:
    raw = image.info.get("exif")  # not getexif(), which decodes a whole PNG in search of one
    orientation = _exif_orientation(raw.removeprefix(b"Exif\0\0")) if isinstance(raw, bytes) else 1
    try:
        moving = getattr(image, "is_animated", False) and image.format != "MPO"
    except PILLOW_ERRORS:  # a broken later frame says nothing about the first
        moving = True
    if image.format == "TIFF":  # Pillow turns these itself, and gives the size after that
        orientation = 1
    name = {"JPEG": "jpg", "MPO": "jpg", "HEIF": "heic"}.get(image.format or "", (image.format or "").lower())
    deep = name == "png" and data[24:25] == b"\x10"  # 16 bits a channel, which Pillow's mode RGB hides
    plain = image.mode in ("RGB", "L") and not moving and not deep and "transparency" not in image.info
    return ImageHeader(name, *image.size, orientation, plain, _coded_pixels(data) if name in ("heic", "avif") else 0)


def _coded_pixels(data: bytes) -> int:
    """Pixels of the largest picture in a HEIF file, before any crop: its spatial extents boxes (ISO/IEC 23008-12, 6.5.3)."""
    at, most = data.find(_EXTENTS_BOX), 0
    while 0 <= at <= len(data) - 20:
        width, height = struct.unpack_from(">II", data, at + 12)
        most = max(most, width * height)
        at = data.find(_EXTENTS_BOX, at + 20)
    return most


def _jpeg_header(data: bytes) -> ImageHeader | None:
    """Size, channels and orientation from the segments before the scan (ITU T.81, B.1); None where they are odd."""
    at, orientation = 2, 1
    end = len(data)
    while at + 9 < end:
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xE1 and orientation == 1 and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _exif_orientation(data[at + 10 : at + 2 + length])
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            depth, height, width, channels = struct.unpack(">BHHB", data[at + 4 : at + 10])
            if depth != 8 or not height or not width or channels not in (1, 3):
                return None  # 12 bit, CMYK, height given later: Pillow decides
            return ImageHeader("jpg", width, height, orientation, plain=True)
        elif marker in (0xD8, 0xD9, 0xDA) or length < 2:
            return None
        at += 2 + length
    return None


def _exif_orientation(tiff: bytes) -> int:
    """Value of tag 0x0112 in the first directory of an EXIF block; 1 where there is none or the block is broken."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    (first,) = struct.unpack(order + "I", tiff[4:8])
    if first + 2 > len(tiff):
        return 1
    (count,) = struct.unpack(order + "H", tiff[first : first + 2])
    for at in range(first + 2, min(first + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind = struct.unpack(order + "HH", tiff[at : at + 4])
        if tag == _EXIF_ORIENTATION and kind == 3:
            (value,) = struct.unpack(order + "H", tiff[at + 8 : at + 10])
            return value if 1 <= value <= 8 else 1
    return 1
