"""Covering designs: few choices of blocks such that, whichever `errors` blocks hold an error, one choice has none of them.

Found by simulated annealing; for most of them fewer choices are not known (La Jolla Covering Repository, C(blocks, blocks - agree, errors),
whose complements these are). `tests/stages/dups/test_coverings.py` checks each one.
"""

from __future__ import annotations

# errors -> (blocks, choices as bit masks in hexadecimal)
_FOUND = {
    2: [(7, "1b 72 55 3c 4e 69 27"), (9, "b7 ed 1f1 1d6 167 17c 19d 13b 5f fa 1cb 1ae"), (13, "1f39 b5f 19f3 1eda dbe 1aaf 1dcd 7eb 1f66 ef5 1797 13fc 147f")],
    3: [
        (8, "d2 55 e4 aa c9 4e 87 1b 9c 63 36 78 2d b1"),
        (10, "26e e7 369 2ba 2cb 2f1 33c 1b6 1b9 7b 2d6 1d3 12f 2ad 237 1cd 15e 372 31b 3d8 25d fc 347 395 3e4 175 3a3 38e 1ea 9f"),
    ],
    4: [
        (7, "48 3 30 60 6 50 18 28 5"),
        (10, "181 8a 244 124 58 25 260 218 92 103"),
        (9, "10c 85 130 182 23 64 16 d0 4a 141 19 a8"),
        (11, "10e 164 505 382 438 4d0 e8 28c 261 59 642 489 314 96 b1 21a 423"),
        (10, "8b 254 e2 d1 2a8 330 1e 33 24a 78 285 2d 303 186 164 226 3c0 115 149 198"),
        (12, "8cc 70c e60 89a 455 18b 9a4 c89 2e2 4e2 227 83c e82 2b8 495 c0b b11 5d0 25a 2c5 532 169 946 f2"),
        (11, "68c 19a 4c3 52a 4cc 255 169 616 362 664 631 570 459 529 64a 3a1 1b4 73 1c6 28b 2a6 9d 790 4c5 4b2 5e 349 2f 2e8 507 313 31c"),
    ],
}

COVERINGS: dict[int, list[tuple[int, tuple[int, ...]]]] = {
    errors: [(blocks, tuple(int(one, 16) for one in choices.split())) for blocks, choices in designs] for errors, designs in _FOUND.items()
}
