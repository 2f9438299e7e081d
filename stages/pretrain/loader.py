"""Batches in a fixed order, decoded ahead by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from stages.pretrain.data import Samples
from stages.pretrain.draws import epoch_order, generator
from stages.pretrain.errors import DataError, TrainError
from stages.pretrain.images import eval_view, train_view
from stages.pretrain.objectives.base import Batch, Needs, Sample, Tokenize

Collate = Callable[[Sequence[Sample], Tokenize], Batch]


@dataclass(frozen=True, slots=True)
class Views:
    """How images become views: side in pixels, filter, resize mode, area of the training crop, decoding margin."""

    size: int
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    crop_scale: tuple[float, float] = (0.9, 1.0)
    decode_margin: float = 1.0


@dataclass(frozen=True, slots=True)
class Position:
    """The place in the stream of batches: the next batch is number `batch` of epoch `epoch`."""

    epoch: int = 0
    batch: int = 0


def read_sample(samples: Samples, index: int, epoch: int, seed: int, needs: Needs, views: Views) -> Sample:
    """Sample `index` with the views and texts an objective needs.

    Raises DataError with the sample's key and tar where the image does not decode: the shards promise that it does,
    so a silent skip would hide a damaged dataset.
    """
    key = samples.key(index)
    made: dict[str, np.ndarray] = {}
    try:
        image = samples.image(index) if needs.views else None
        for name in needs.views:
            assert image is not None
            if name == "eval":
                made[name] = eval_view(image, views.size, views.interpolation, views.resize_mode)
            else:
                rng = generator(seed, epoch, key, f"crop:{name}")
                made[name] = train_view(
                    image, views.size, rng, views.crop_scale, views.interpolation, views.decode_margin
                )
    except (ValueError, OSError) as error:
        raise DataError(
            f"sample {key} does not decode ({samples.place(index)}): {error}; check the dataset with `pairmill verify`"
        ) from error
    texts = samples.texts(index) if "texts" in needs.columns else ()
    kinds = samples.kinds(index) if "kinds" in needs.columns else ()
    return Sample(key=key, views=made, caption=samples.caption(index), texts=texts, epoch=epoch, seed=seed, kinds=kinds)


@dataclass(slots=True)
class LoadedBatch:
    """One batch of this rank: its place, its sample keys, its tensors (images still uint8)."""

    position: Position
    keys: list[str]
    tensors: Batch


class BatchLoader:
    """Batches of one rank, shuffled over the whole set anew each epoch, without end.

    The order is a permutation that depends on (seed, epoch) only; rank r of R takes the r-th of R equal slices of each
    global batch. Samples left over at the end of an epoch are not used in it. Decoding runs in `workers` threads
    (libjpeg-turbo and Pillow release the GIL), which spares copying pixels between processes.

    Raises TrainError if one batch is larger than the set or does not divide by the number of ranks.
    """

    def __init__(
        self, samples: Samples, collate: Collate, tokenize: Tokenize, needs: Needs, views: Views, batch_size: int,
        seed: int, workers: int = 2, prefetch: int = 3, rank: int = 0, world_size: int = 1,
    ) -> None:
        if batch_size > len(samples):
            raise TrainError(f"option batch_size: {batch_size} is more than the {len(samples)} samples of the split")
        if batch_size % world_size:
            raise TrainError(f"option batch_size: {batch_size} does not divide by {world_size} ranks")
        self._samples, self._collate, self._tokenize = samples, collate, tokenize
        self._needs, self._views, self._seed = needs, views, seed
        self._batch_size, self._workers, self._prefetch = batch_size, workers, prefetch
        self._local = batch_size // world_size
        self._start = rank * self._local
        self.batches_per_epoch = len(samples) // batch_size
        self._order: tuple[int, np.ndarray] | None = None

    def indices(self, position: Position) -> np.ndarray:
        """The sample indices of this rank's part of a batch, int64 [batch_size / ranks]."""
        if self._order is None or self._order[0] != position.epoch:
            self._order = (position.epoch, epoch_order(self._seed, position.epoch, len(self._samples)))
        first = position.batch * self._batch_size + self._start
        return self._order[1][first:first + self._local]

    def after(self, position: Position) -> Position:
        """The position that follows."""
        if position.batch + 1 < self.batches_per_epoch:
            return Position(position.epoch, position.batch + 1)
        return Position(position.epoch + 1, 0)

    def batches(self, position: Position) -> Generator[LoadedBatch, None, None]:
        """Batches from `position` on; closing the generator stops the reading threads."""
        if self._workers == 0:
            while True:
                read = self._read(self.indices(position), position.epoch)
                yield self._finish(position, read)
                position = self.after(position)
        with ThreadPoolExecutor(self._workers) as readers, ThreadPoolExecutor(1) as collator:
            waiting: deque[Future[LoadedBatch]] = deque()
            try:
                while True:
                    while len(waiting) < self._prefetch:
                        waiting.append(self._submit(readers, collator, position))
                        position = self.after(position)
                    yield waiting.popleft().result()
            finally:
                readers.shutdown(wait=False, cancel_futures=True)
                collator.shutdown(wait=False, cancel_futures=True)

    def once(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Generator[LoadedBatch, None, None]:
        """Every sample of the set once, over all ranks, in the order of epoch 0 and with its draws, in batches of one size.

        The last batch is filled up with samples of the first ones, which come after its own rows and have no key in it.
        """
        order = epoch_order(self._seed, 0, len(self._samples))
        firsts = range(0, len(order), batch_size)
        with ThreadPoolExecutor(max(1, self._workers)) as readers:
            for number in range(rank, len(firsts), world_size):
                own = order[firsts[number]:firsts[number] + batch_size]
                indices = np.concatenate([own, order[:batch_size - len(own)]])
                chunks = [indices[first:first + 16] for first in range(0, len(indices), 16)]
                read = [sample for part in readers.map(lambda some: self._read(some, 0), chunks) for sample in part]
                whole = self._finish(Position(0, number), read)
                yield LoadedBatch(whole.position, whole.keys[:len(own)], whole.tensors)

    def _submit(
        self, readers: ThreadPoolExecutor, collator: ThreadPoolExecutor, position: Position,
    ) -> Future[LoadedBatch]:
        indices = self.indices(position)
        chunk = max(1, min(16, len(indices) // self._workers))
        parts = [
            readers.submit(self._read, indices[first:first + chunk], position.epoch)
            for first in range(0, len(indices), chunk)
        ]
        # tokenising and stacking run beside the decoding of the next batch, not in the training loop
        return collator.submit(lambda: self._finish(position, [sample for part in parts for sample in part.result()]))

    def _read(self, indices: np.ndarray, epoch: int) -> list[Sample]:
        return [
            read_sample(self._samples, int(index), epoch, self._seed, self._needs, self._views) for index in indices
        ]

    def _finish(self, position: Position, samples: list[Sample]) -> LoadedBatch:
        return LoadedBatch(position, [sample.key for sample in samples], self._collate(samples, self._tokenize))
