"""A loopback web of any number of 5 KB JPEGs, each with bytes of its own: python tests/bench/many_images.py PORT"""

from __future__ import annotations

import io
import struct
import sys

import numpy as np
from aiohttp import web
from PIL import Image


def base_jpeg(target: int = 5000) -> bytes:
    """A JPEG of about `target` bytes."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    image = Image.fromarray(pixels).resize((112, 112), Image.Resampling.BICUBIC)
    for quality in range(98, 20, -2):
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality)
        if out.tell() <= target:
            return out.getvalue()
    raise ValueError("no quality gives so few bytes")


def main() -> None:
    jpeg = base_jpeg()

    async def answer(request: web.Request) -> web.Response:
        comment = request.match_info["name"].encode()
        segment = b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment  # a comment segment makes the bytes unique
        return web.Response(body=jpeg[:2] + segment + jpeg[2:], content_type="image/jpeg")

    app = web.Application()
    app.router.add_get("/{name}.jpg", answer)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)


if __name__ == "__main__":
    main()
