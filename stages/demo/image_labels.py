"""What is to be seen at each place of a rendered scene, as class numbers for the classification of image tokens."""

from __future__ import annotations

from typing import Final

from stages.demo.backgrounds import BACKGROUNDS
from stages.demo.scenes import COLORS, POSITIONS, SHAPES, SIZES, TEXTURES, Scene

GRID: Final = 3
HEADS: Final[dict[str, tuple[str, ...]]] = {
    "color": ("none", *COLORS),
    "shape": ("none", *SHAPES),
    "texture": ("none", *TEXTURES),
    "size": ("none", *SIZES),
    "background": tuple(BACKGROUNDS),
    "cell": tuple(POSITIONS),
    "rank": ("none", *(f"number {n}" for n in range(1, 10))),
}
"""Head -> names of its classes; a place without an object has class 0 of the first four and of the last. 'cell' is the place
itself: the vision tower knows places only relative to each other, and 'in the top left corner' asks for a fixed one. 'rank' is
the number of the object in reading order, in which captions name objects."""


def image_labels(scene: Scene, side: int) -> dict[str, list[int]]:
    """Head -> class of each of side x side places, row by row: that of the object in whose grid cell the place lies.

    An object's middle lies near the middle of its cell and its radius is more than a quarter of it, so of 2 x 2 places
    per cell each shows a part of the object.
    Raises ValueError if the 3 x 3 grid does not divide `side`.
    """
    if side % GRID:
        raise ValueError(f"image_labels: side {side} is no multiple of {GRID}")
    cells = {item.cell: item for item in scene.objects}
    ranks = {cell: number for number, cell in enumerate(sorted(cells), start=1)}
    labels: dict[str, list[int]] = {head: [] for head in HEADS}
    for place in range(side * side):
        row, column = divmod(place, side)
        cell = (row * GRID // side, column * GRID // side)
        item = cells.get(cell)
        for head in ("color", "shape", "texture", "size"):
            labels[head].append(HEADS[head].index(getattr(item, head)) if item else 0)
        labels["cell"].append(cell[0] * GRID + cell[1])
        labels["rank"].append(ranks.get(cell, 0))
        labels["background"].append(HEADS["background"].index(scene.background))
    return labels
