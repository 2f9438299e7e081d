"""Rendered scenes as samples of the MLLM objective: each drawn, rendered and asked about when it is read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stages.demo.image_labels import image_labels
from stages.demo.scenes import Scene, draw_scene, render
from stages.demo.streams import seed_for
from stages.pretrain.dialogue import Dialogue, Turn
from stages.pretrain.images import ArrayImage

RENDER_SIZE = 128  # the side the demo's web serves; models see it resized, as they see any image
MakeTurns = Callable[[Scene, np.random.Generator], tuple[Turn, ...]]


class RenderedDialogues:
    """`count` scenes of a stream from index `first` on; nothing is kept, so a training may see each scene once.

    `turns` draws the requests about a scene (None: no request), `side` is the number of image tokens per side. `crowded`
    scenes have 5 to 9 objects: what an image shows of each is the same, and a lesson in seeing has three times as many.
    """

    def __init__(self, stream: str, first: int, count: int, side: int, turns: MakeTurns | None, crowded: bool = False) -> None:
        self._stream, self._first, self._count, self._side, self._turns = stream, first, count, side, turns
        self._crowded = crowded

    def __len__(self) -> int:
        return self._count

    def scene(self, index: int) -> Scene:
        seed = seed_for(self._stream, self._first + index)
        return draw_scene(seed, 5 + seed % 5 if self._crowded else None)

    def key(self, index: int) -> str:
        return f"{self._stream}:{self._first + index}"

    def place(self, index: int) -> str:
        return f"scene {self._first + index} of stream {self._stream}"

    def caption(self, index: int) -> str:
        """The dialogue in JSON."""
        scene = self.scene(index)
        rng = np.random.Generator(np.random.PCG64([scene.seed, 60]))
        return Dialogue(self._turns(scene, rng) if self._turns else (), image_labels(scene, self._side)).to_json()

    def texts(self, index: int) -> list[str]:
        return [self.caption(index)]

    def image(self, index: int) -> ArrayImage:
        return ArrayImage(render(self.scene(index), RENDER_SIZE))
