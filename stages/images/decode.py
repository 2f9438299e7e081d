"""Image bytes to pixels: uint8 RGB, orientation applied, and a failure wherever data is missing or damaged."""

from __future__ import annotations

import numpy as np
import simplejpeg
from PIL import Image

from schemas.outcome import FailureCode
from stages.images.fast import jpeg_is_sound
from stages.images.header import PILLOW_ERRORS, ImageError, ImageHeader, damaged, open_image, read_header, sniff

DEFAULT_PIXEL_LIMIT = 50_000_000

# What libjpeg only warns of, and what then lies in the picture is made up (grey, or noise).
_DAMAGED_PIXELS = ("premature end", "bad huffman", "bad arithmetic", "inconsistent progression", "instead of rst", "corrupt jpeg data: found")
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
# EXIF orientation (value 2 to 8) as what brings the coded pixels upright: transpose, then flips of rows and columns.
_TURNS = {
    2: (False, False, True), 3: (False, True, True), 4: (False, True, False), 5: (True, False, False),
    6: (True, False, True), 7: (True, True, True), 8: (True, True, False),
}  # fmt: skip


def check_size(header: ImageHeader, pixel_limit: int) -> None:
    """Raises ImageError(pixel_limit), or corrupt_image for a picture without pixels."""
    if header.width < 1 or header.height < 1:
        raise ImageError(FailureCode.CORRUPT_IMAGE, f"{header.format} of {header.width} x {header.height} pixels")
    if header.width * header.height > pixel_limit:
        raise ImageError(FailureCode.PIXEL_LIMIT, f"{header.width} x {header.height} pixels, more than the limit of {pixel_limit}")
    if header.coded_pixels > pixel_limit:
        raise ImageError(FailureCode.PIXEL_LIMIT, f"{header.coded_pixels} pixels before cropping, more than the limit of {pixel_limit}")


def decode(
    data: bytes,
    header: ImageHeader | None = None,
    *,
    pixel_limit: int = DEFAULT_PIXEL_LIMIT,
    min_width: int = 0,
    min_height: int = 0,
) -> np.ndarray:
    """Pixels uint8 [H, W, 3] in RGB of the first frame, upright.

    With `min_width` and `min_height` (pixels of the upright image; both or none) a JPEG may come scaled down by 2, 4
    or 8 in its transform, never below them; other formats come whole. Raises ImageError: see `read_header`, and
    pixel_limit, corrupt_image for data that is cut or damaged.
    """
    header = header or read_header(data)
    check_size(header, pixel_limit)
    if header.format == "jpg" and header.plain:
        if header.orientation >= 5:
            min_width, min_height = min_height, min_width
        pixels = _decode_jpeg(data, "RGB", min_width, min_height)
        if pixels is not None:
            return upright(pixels, header.orientation)
    return _decode_pillow(data, header.orientation)


def verify(data: bytes, header: ImageHeader, pixel_limit: int = DEFAULT_PIXEL_LIMIT) -> bool:
    """Read all of an image's data without need of its pixels. Raises ImageError as `decode` does.

    Of a JPEG every Huffman code is read and every block counted; what is left of decoding then (dequantisation, inverse transform,
    colours) cannot fail. What our own reader does not find sound, libjpeg decodes, at 1/8 of the size. False where the picture is
    whole and the file is damaged behind it: other readers may refuse it.
    """
    check_size(header, pixel_limit)
    if header.format == "jpg" and header.plain and (jpeg_is_sound(data) or _decode_jpeg(data, "GRAY", 1, 1) is not None):
        return True
    return _load(data)[1]


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H, W, 3] with an EXIF orientation (1 to 8) applied."""
    if orientation == 1:
        return pixels
    transpose, flip_rows, flip_columns = _TURNS[orientation]
    if transpose:
        pixels = pixels.transpose(1, 0, 2)
    return np.ascontiguousarray(pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def _decode_jpeg(data: bytes, colours: str, min_width: int, min_height: int) -> np.ndarray | None:
    """Pixels by libjpeg-turbo, strictly; None for a file that is only oddly built, which Pillow then judges."""
    scaled = min_width > 0 and min_height > 0
    try:
        return simplejpeg.decode_jpeg(
            data, colours, min_width=min_width, min_height=min_height, min_factor=2 if scaled else 1, strict=True
        )
    except ValueError as error:
        if pixels_damaged(error):
            raise ImageError(FailureCode.CORRUPT_IMAGE, f"jpg: {error}") from error
        return None


def pixels_damaged(error: ValueError) -> bool:
    """Whether simplejpeg, which refuses all that libjpeg warns of, refused damaged pixels and not a file that is only oddly built."""
    return any(sign in str(error).lower() for sign in _DAMAGED_PIXELS)


def _decode_pillow(data: bytes, orientation: int) -> np.ndarray:
    image, _ = _load(data)
    with image:
        try:
            return upright(np.asarray(to_rgb(image)), orientation)
        except PILLOW_ERRORS as error:
            raise damaged((image.format or "image").lower(), error) from error


def _load(data: bytes) -> tuple[Image.Image, bool]:
    """Pillow's image with its pixels read, and whether the file is whole. Raises ImageError."""
    kind = sniff(data)
    image = open_image(data, kind)
    try:
        image.load()
        return image, kind != "png" or _PNG_END in data
    except (Image.DecompressionBombError, *PILLOW_ERRORS) as error:
        image.close()
        picture = _png_up_to_its_picture(data) if kind == "png" else data
        if len(picture) == len(data):
            raise damaged(kind or (image.format or "image").lower(), error) from error
    return _load(picture)[0], False


def _png_up_to_its_picture(data: bytes) -> bytes:
    """A PNG that ends behind its image data: what follows (later frames, texts, the end mark) may be broken or cut."""
    at, end, seen = 8, len(data), False
    while at + 12 <= end:
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if seen and name != b"IDAT":
            break
        if at + 12 + size > end:
            return data
        seen = seen or name == b"IDAT"
        at += 12 + size
    return data[:at] + _PNG_END if seen and data[at:] != _PNG_END else data


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB: alpha over white, 16-bit and float greys scaled to 8 bits, palettes and CMYK converted."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_grey_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image)
        return white
    return image.convert("RGB")


def _grey_to_8_bits(grey: np.ndarray) -> np.ndarray:
    """Greys of 16 bits by their high byte; floats are taken as 0 to 1 where none is larger, else as 0 to 255."""
    if grey.dtype.kind == "f":
        grey = np.nan_to_num(grey, nan=0.0, posinf=255.0, neginf=0.0)
        return np.clip(np.rint(grey * (255.0 if grey.size and grey.max() <= 1.0 else 1.0)), 0, 255).astype(np.uint8)
    if grey.size and grey.max() > 255:
        grey = grey >> 8
    return np.clip(grey, 0, 255).astype(np.uint8)
