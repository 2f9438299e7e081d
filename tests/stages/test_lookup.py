"""HashTable against a plain loop: by tables and by brute force, with equal hashes, up to the distance and not beyond."""

from __future__ import annotations

import numpy as np
import pytest

from stages.dups.lookup import HashTable


def mutated(hashes: np.ndarray, draw: np.random.Generator, most: int) -> np.ndarray:
    """Each hash with 0 to `most` bits changed."""
    bits = np.unpackbits(hashes, axis=1)
    for row in bits:
        row[draw.choice(bits.shape[1], int(draw.integers(most + 1)), replace=False)] ^= 1
    return np.packbits(bits, axis=1)


@pytest.mark.parametrize("cut", [4, 3, 0])  # pieces of a word; 0: brute force
@pytest.mark.parametrize(("width", "distance"), [(8, 0), (8, 6), (8, 11), (32, 31)])
def test_all_pairs_within_the_distance_and_no_other(width: int, distance: int, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(distance)
    stored = draw.integers(0, 256, (400, width), dtype=np.uint8)
    stored = np.concatenate([stored, stored[:20]])
    asked = np.concatenate([mutated(stored[:150], draw, distance + 3), draw.integers(0, 256, (20, width), dtype=np.uint8)])
    monkeypatch.setattr("stages.dups.lookup._AT_ONCE", 5_000)
    monkeypatch.setattr("stages.dups.lookup._BRUTE_NS", 1e9 if cut else 0.0)
    monkeypatch.setattr("stages.dups.lookup._PER_WORD", (cut or 4,))
    table = HashTable(stored, distance)
    assert table.brute is (cut == 0)
    found = table.near(asked)
    expected = []
    numbers = [int.from_bytes(one.tobytes(), "big") for one in stored]
    for left, one in enumerate(asked):
        for right, other in enumerate(numbers):
            bits = (int.from_bytes(one.tobytes(), "big") ^ other).bit_count()
            if bits <= distance:
                expected.append((left, bits, right))
    assert list(zip(found.left.tolist(), found.distance.tolist(), found.right.tolist(), strict=True)) == sorted(expected)
    assert len(expected) > 30


def test_no_hashes_and_no_queries() -> None:
    nothing = np.empty((0, 8), np.uint8)
    assert len(HashTable(nothing, 6).near(np.zeros((3, 8), np.uint8))) == 0
    assert len(HashTable(np.zeros((3, 8), np.uint8), 6).near(nothing)) == 0
