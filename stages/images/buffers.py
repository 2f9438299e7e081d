"""Memory that bodies are received in."""

from __future__ import annotations

BUFFER_BYTES = 1 << 18
_MAX_KEPT_BYTES = 1 << 20  # a buffer that grew beyond goes back to the system

Bytes = bytes | memoryview


class Buffers:
    """Buffers that are used again: fresh memory for each body, and a copy of it, cost as much as a digest of the body. For one event loop.

    `scratch` is where the next bytes go that belong to no body yet. Whoever is given a memoryview of a buffer has it alone until `give_back`;
    one that is never given back is freed with its last view.
    """

    def __init__(self, most: int = 64):
        self._most = most
        self._free: list[bytearray] = []
        self._renew()

    def _renew(self) -> None:
        self.scratch = self.take()
        self.view = memoryview(self.scratch)

    def take(self) -> bytearray:
        """At least BUFFER_BYTES."""
        return self._free.pop() if self._free else bytearray(BUFFER_BYTES)

    def keep(self, view: memoryview) -> memoryview:
        """`view` for longer than this call: where it is of the scratch, there is another scratch from now on."""
        if view.obj is self.scratch:
            self._renew()
        return view

    def give_back(self, body: Bytes) -> None:
        """The body of an answer is needed no more: reading a view of it fails from now on."""
        if not isinstance(body, memoryview):
            return
        buffer = body.obj
        body.release()
        if isinstance(buffer, bytearray) and BUFFER_BYTES <= len(buffer) <= _MAX_KEPT_BYTES and len(self._free) < self._most:
            self._free.append(buffer)
