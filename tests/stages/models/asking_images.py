"""Requests about noise, for tests of chat models."""

from __future__ import annotations

from typing import Any

import numpy as np

from stages.models.protocols import ChatRequest, Sampling, image_digest


def request(picture: int = 0, text: str = "describe the image", side: tuple[int, int] = (64, 96), **sampling: Any) -> ChatRequest:
    """A request about the noise number `picture` of `side` (height, width) pixels."""
    pixels = np.random.default_rng(picture).integers(0, 255, (*side, 3), dtype=np.uint8)
    return ChatRequest("a system text", text, pixels, image_digest(pixels), Sampling(**{"max_tokens": 12, **sampling}))
