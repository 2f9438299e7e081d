"""Disjoint ranges of scene seeds: what a model is trained on is never what it is asked about."""

from __future__ import annotations

from typing import Final

STREAM_LENGTH: Final = 1 << 40
STREAMS: Final[dict[str, int]] = {
    "web": 0,  # rows of the demo's own web
    "heldout": 1,  # evaluation pairs
    "train": 2,  # what the bundled models are trained on
    "train_eval": 3,  # how that training is watched
}
"""Stream name -> number of its range: range k holds the seeds k * 2**40 up to (k + 1) * 2**40."""


def seed_for(stream: str, index: int) -> int:
    """The index-th scene seed of a stream.

    Raises:
        ValueError: the stream is not known, or the index is outside its range.
    """
    if stream not in STREAMS:
        raise ValueError(f"stream {stream!r} is not known; known: {', '.join(STREAMS)}")
    if not 0 <= index < STREAM_LENGTH:
        raise ValueError(f"index {index} of stream {stream!r} must be between 0 and {STREAM_LENGTH - 1}")
    return STREAMS[stream] * STREAM_LENGTH + index
