"""read_images: the images of a local source are read, checked, normalised and stored, as `download` does with fetched ones."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from pipeline.errors import Fatal
from pipeline.stage import Context, Row, Values, tunes
from schemas.outcome import Drop, Failure, FailureCode
from stages.images import event_loop
from stages.images.collect import STORED_COLUMNS, Collector
from stages.images.fetch import Fetched
from stages.images.local import Found, Place, is_local, plan_reads, read_places
from stages.images.table_cells import is_table, split_cell
from stages.storing import StoringParams, StoringStage


class ReadImagesParams(StoringParams):
    """What every stage that stores images takes, and how many files are read at a time."""

    concurrency: int = tunes(8, "files (or ranges of tars) read at a time, per part; more for object storage", ge=1)


class ReadImages(StoringStage):
    """Read, check and store the images of image_folder, image_table, webdataset_tars or img2dataset_output; fails rows with the reason.

    Files and members of tars are read by their place, as bytes; near ranges of a tar are read at once, and tables some rows at a time. A file that is gone is
    missing_image, one that cannot be read unreadable. All later stages see the same columns as after `download`, but those of HTTP.
    """

    name: ClassVar[str] = "read_images"
    version: ClassVar[int] = 1
    Params = ReadImagesParams
    params: ReadImagesParams
    reads = ("path", "source_file", "source_offset", "source_size", "sample_id")
    writes = dict(STORED_COLUMNS)
    seconds_per_row = 0.003

    def compute(self, rows: Sequence[Row], ctx: Context) -> list[Values | Failure]:
        """Read all images of a part; bytes go to `ctx.blobs` in the order of completion."""
        collector = self.collector(rows, ctx, lambda fetched: {})
        event_loop.run(self._read_all(rows, collector))
        return collector.results()

    async def _read_all(self, rows: Sequence[Row], collector: Collector) -> None:
        places = []
        for at, row in enumerate(rows):
            if row["source_file"]:
                places.append(Place(at, row["source_file"], row["source_offset"], row["source_size"]))
            else:
                await collector.handle(Fetched(at, failure=Failure(FailureCode.BAD_ROW, "the row names no file")))
        tasks = iter(plan_reads(places))
        with ThreadPoolExecutor(self.params.concurrency, thread_name_prefix="read") as pool:
            await asyncio.gather(*(self._work(tasks, pool, collector) for _ in range(self.params.concurrency)))

    async def _work(self, tasks: Iterator[list[Place]], pool: ThreadPoolExecutor, collector: Collector) -> None:
        """Take one task after the other; what it read is stored before more is read, which bounds memory."""
        loop = asyncio.get_running_loop()
        nothing: Found = []
        for task in tasks:
            pieces = read_places(task, self.params.max_bytes)
            if not is_table(task[0].file):
                while found := await loop.run_in_executor(pool, next, pieces, nothing):
                    await self._store(found, collector)
                continue
            # all of a table is one task: its images are stored side by side, while the next ones are read
            reading = loop.run_in_executor(pool, next, pieces, nothing)
            while found := await reading:
                reading = loop.run_in_executor(pool, next, pieces, nothing)
                await asyncio.gather(*(self._store(found[lane :: self.params.concurrency], collector) for lane in range(self.params.concurrency)))

    async def _store(self, found: Found, collector: Collector) -> None:
        for at, data in found:
            if isinstance(data, Failure):
                self._check_input(data, collector.rows[at])
                await collector.handle(Fetched(at, failure=data))
            else:
                await collector.handle(Fetched(at, body=data))

    def _check_input(self, failure: Failure, row: Row) -> None:
        """Raises Fatal where not the file alone is gone but the whole input: no row is to blame for a disk that is not mounted."""
        root = input_root(row["path"], row["source_file"])
        if failure.code == FailureCode.MISSING_IMAGE and root and not os.path.isdir(root):
            raise Fatal(
                f"{self.instance}: the input's folder {root} is gone: mount it; or, if it was moved, give its new place and delete `values/source/` "
                "of the run, which is then read again"
            )

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        """Drops too_small and aspect by the size as it came."""
        return self.judge_size(row["original_width"], row["original_height"])


def input_root(path: str, file: str) -> str:
    """The local folder that a row's path is relative to; '' where the input is remote. In a tar only the first words of the path are its file."""
    words, file = path.split("/"), split_cell(file)[0]
    ends = ("/" + "/".join(words[:count]) for count in range(len(words), 0, -1))
    return next((file.removesuffix(end) or "/" for end in ends if file.endswith(end)), "") if is_local(file) else ""
