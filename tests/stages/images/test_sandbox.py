"""The decode sandbox: equal results, one lost row for each thing that may happen in a codec, and nothing left behind."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.blobs import BlobWriter
from pipeline.errors import Fatal
from schemas.outcome import Failure
from stages.images import sandbox
from stages.images.collect import Collector
from stages.images.crop import crop_image
from stages.images.decode import decode
from stages.images.decoders import DecoderLimits, InProcess, Normalized, processes_for, sandbox_possible, shared_decoders
from stages.images.fetch import Fetched
from stages.images.normalize import ImageRules, normalize
from stages.images.sandbox import Sandbox

pytestmark = pytest.mark.skipif(not sandbox_possible(), reason="no memfd or pidfd on this system")
LIMIT_S = 1.0


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    made = Sandbox(DecoderLimits(processes=1))
    yield made
    made.close()


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Sandbox]]:
    """Makes sandboxes whose codecs fail on marked images."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(sandbox, "PROGRAM", "faulty_decoder")
    monkeypatch.setenv("PYTHON_TEST_ONCE", str(tmp_path / "once"))
    made: list[Sandbox] = []

    def make(**limits: Any) -> Sandbox:
        made.append(Sandbox(DecoderLimits(**{"processes": 1, "timeout_s": LIMIT_S, "memory_mb": 256, **limits})))
        return made[-1]

    yield make
    for one in made:
        one.close()


def decoders_of(box: Sandbox) -> list[psutil.Process]:
    return psutil.Process(box.pid).children()


def wait_until(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


@pytest.mark.parametrize(
    "rules",
    [
        ImageRules(), ImageRules(check="header"), ImageRules(resize_mode="border", image_size=50),
        ImageRules(resize_mode="keep_ratio", encode_format="png", encode_quality=3),
    ],
)  # fmt: skip
def test_images_are_those_of_the_same_process(box: Sandbox, jpeg: Callable[..., bytes], rules: ImageRules) -> None:
    for seed in range(4):
        data = jpeg(120 + seed, 90, seed)
        made = box.normalize(data, rules).result(10)
        assert isinstance(made, Normalized)
        assert made.image == normalize(data, rules)
        assert (made.image.data is data) == (rules.resize_mode == "no")


def test_pixels_crops_and_checks(box: Sandbox, jpeg: Callable[..., bytes]) -> None:
    images = [jpeg(100 + 10 * seed, 80, seed) for seed in range(10)]
    found = box.decode_pixels([*images, images[0][:500]])
    for data, pixels in zip(images, found[:-1], strict=True):
        assert (pixels == decode(data)).all()
    assert isinstance(found[-1], Failure) and found[-1].code == "corrupt_image"
    assert (box.crop(images[3], 32, "longest").result(10) == crop_image(images[3], 32, "longest")).all()
    assert box.check(images[0]).result(10) == "jpg"
    assert box.check(images[0], pixel_limit=10).result(10) == Failure("pixel_limit", "100 x 80 pixels, more than the limit of 10")
    assert box.check(b"<html>").result(10).code == "not_an_image"


def test_threads_share_the_decoders(jpeg: Callable[..., bytes]) -> None:
    box = Sandbox(DecoderLimits(processes=2))
    found: dict[int, list[bool]] = {}

    def work(seed: int) -> None:
        images = [jpeg(60 + seed, 50 + at, at) for at in range(40)]
        found[seed] = [made.shape == (50 + at, 60 + seed, 3) for at, made in enumerate(box.decode_pixels(images))]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(decoders_of(box)) == 2
    assert len(found) == 4 and all(all(right) and len(right) == 40 for right in found.values())
    box.close()


@pytest.mark.parametrize(
    ("fault", "code", "detail"),
    [
        ("segfault", "decoder_crashed", "the decoder was ended by SIGSEGV"),
        ("abort", "decoder_crashed", "the decoder was ended by SIGABRT: codec.c:12: decode: Assertion `rows > 0' failed."),
        ("undeclared", "decoder_crashed", "the decoder raised KeyError: 'no such table'"),
        ("allocate", "decoder_memory", "needs more than 256 MB to decode"),
        ("allocate_unchecked", "decoder_crashed", "the decoder was ended by SIGSEGV"),
        ("die", "decoder_memory", "the decoder was killed from outside (SIGKILL), most likely for want of memory on this machine"),
    ],
)  # fmt: skip
def test_a_fault_costs_its_row(faulty: Callable[..., Sandbox], jpeg: Callable[..., bytes], fault: str, code: str, detail: str) -> None:
    box, good = faulty(timeout_s=20), jpeg()
    images = [good] * 5 + [good + b"#" + fault.encode()] + [good] * 5
    made = [future.result(20) for future in [box.normalize(data, ImageRules()) for data in images]]
    assert made[5] == Failure(code, detail)
    assert all(isinstance(one, Normalized) for at, one in enumerate(made) if at != 5)


@pytest.mark.parametrize("fault", [b"#sleep", b"#spin"])
def test_a_hang_costs_its_limit(faulty: Callable[..., Sandbox], jpeg: Callable[..., bytes], fault: bytes) -> None:
    box, good = faulty(), jpeg()
    assert isinstance(box.normalize(good, ImageRules()).result(10), Normalized)
    started = time.monotonic()
    futures = [box.normalize(data, ImageRules()) for data in [good + fault] + [good] * 10]
    assert futures[0].result(10) == Failure("decoder_hung", "no picture within 1 s")
    assert LIMIT_S <= time.monotonic() - started <= LIMIT_S + 3
    assert all(isinstance(future.result(10), Normalized) for future in futures[1:])
    assert time.monotonic() - started <= LIMIT_S + 3, "those behind it wait no longer"


def test_a_hang_holds_up_no_other_decoder(faulty: Callable[..., Sandbox], jpeg: Callable[..., bytes]) -> None:
    box, good = faulty(processes=2, timeout_s=30), jpeg()
    held = box.normalize(good + b"#sleep", ImageRules())
    futures = [box.normalize(good, ImageRules()) for _ in range(50)]
    assert all(isinstance(future.result(5), Normalized) for future in futures)
    assert not held.done()


def test_what_is_killed_from_outside_is_tried_again(faulty: Callable[..., Sandbox], jpeg: Callable[..., bytes]) -> None:
    box = faulty(timeout_s=20)
    assert isinstance(box.normalize(jpeg() + b"#die_once", ImageRules()).result(10), Normalized)


def test_the_three_faults_among_a_thousand_rows(
    faulty: Callable[..., Sandbox], tmp_path: Path, jpeg: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `download` meets them: the collector of a part, 64 rows under way."""
    bad = {100: b"#segfault", 500: b"#allocate", 900: b"#sleep"}
    rows = [{"sample_id": at.to_bytes(16, "big")} for at in range(1000)]
    limits = DecoderLimits(processes=1, timeout_s=LIMIT_S, memory_mb=256)
    collector = Collector(rows, BlobWriter(tmp_path, 0), ImageRules(), lambda fetched: {}, limits)
    good = jpeg(64, 48)

    async def all_rows() -> None:
        waiting = iter(range(1000))

        async def work() -> None:
            for at in waiting:
                await collector.handle(Fetched(at, body=good + bad.get(at, b"")))

        await asyncio.gather(*[work() for _ in range(64)])

    asyncio.run(all_rows())
    results = collector.results()
    lost = {at: result.code for at, result in enumerate(results) if isinstance(result, Failure)}
    assert lost == {100: "decoder_crashed", 500: "decoder_memory", 900: "decoder_hung"}
    assert sum(isinstance(result, dict) for result in results) == 997
    collector.decoders.close()


def test_noise_of_codecs_stays_away_from_the_terminal(
    faulty: Callable[..., Sandbox], jpeg: Callable[..., bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    box = faulty(timeout_s=20)
    assert isinstance(box.normalize(jpeg() + b"#babble", ImageRules()).result(20), Normalized)
    assert box.normalize(jpeg() + b"#abort", ImageRules()).result(20).detail.count("TIFF") == 0, "only what belongs to the row"
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "")


def test_processes_are_lean(box: Sandbox, jpeg: Callable[..., bytes]) -> None:
    """Neither torch, pyarrow, Ray nor duckdb; all of them bring libraries of their own."""
    assert box.check(jpeg()).result(10) == "jpg"
    for process in [psutil.Process(box.pid), *decoders_of(box)]:
        libraries = {Path(area.path).name for area in process.memory_maps() if ".so" in area.path}
        assert any("simplejpeg" in str(area.path) for area in process.memory_maps()), "the codecs are there"
        assert [name for name in libraries if re.search(r"torch|arrow|raylet|duckdb|pydantic|libtpu|libcuda", name)] == []
        assert process.num_threads() == 1


def test_environment_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    box = Sandbox(DecoderLimits(processes=1))
    assert "AWS_SECRET_ACCESS_KEY" not in psutil.Process(box.pid).environ()
    box.close()


def test_slots_give_large_memory_back(box: Sandbox) -> None:
    large = np.random.default_rng(0).integers(0, 255, (1500, 4000, 3), dtype=np.uint8)
    import simplejpeg

    data = simplejpeg.encode_jpeg(large, quality=98)
    assert len(data) > 5 << 20
    for made in box.decode_pixels([data] * 10):
        assert made.shape == (1500, 4000, 3)
    assert box.held_bytes() <= 8 * (1 << 20)


def test_decoders_are_renewed(box: Sandbox, jpeg: Callable[..., bytes]) -> None:
    """What a codec leaks cannot add up, and no row pays for what others took."""
    before, small = decoders_of(box)[0].pid, jpeg(8, 8)
    assert all(not isinstance(future.result(20), Failure) for future in [box.check(small) for _ in range(2100)])
    assert decoders_of(box)[0].pid != before


@pytest.mark.parametrize("who", ["watcher", "decoder", "idle watcher", "idle decoder"])
def test_the_processes_may_be_killed_at_any_time(faulty: Callable[..., Sandbox], jpeg: Callable[..., bytes], who: str) -> None:
    box = faulty(timeout_s=20)
    assert box.check(jpeg()).result(10) == "jpg"
    futures = [] if "idle" in who else [box.check(jpeg(300, 300, at % 7)) for at in range(200)]
    victim = box.pid if "watcher" in who else decoders_of(box)[0].pid
    os.kill(victim, signal.SIGKILL)
    assert wait_until(lambda: not psutil.pid_exists(victim))
    futures += [box.check(jpeg()) for _ in range(20)]
    assert [future.result(20) for future in futures] == ["jpg"] * len(futures)


WORKER = """
import sys, time
sys.path[:0] = sys.argv[1:3]
from stages.images import sandbox
from stages.images.decoders import DecoderLimits
import psutil
sandbox.PROGRAM = "faulty_decoder"
box = sandbox.Sandbox(DecoderLimits(processes=2, timeout_s=600))
held = [box.check(b"#spin") for _ in range(5)]
while len(psutil.Process(box.pid).children()) < 2:
    time.sleep(0.01)
time.sleep(0.2)
print(box.pid, *[child.pid for child in psutil.Process(box.pid).children()], flush=True)
time.sleep(600)
"""


def open_files(pid: int) -> set[str]:
    return {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}


def test_nothing_is_left_when_the_worker_is_killed() -> None:
    """Not even of decoders that hang. Their memory has no name that could stay: nothing of theirs lies in /dev/shm."""
    here = Path(__file__)
    with subprocess.Popen([sys.executable, "-c", WORKER, str(here.parents[3]), str(here.parent)], stdout=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.stdout is not None
            pids = [int(pid) for pid in worker.stdout.readline().split()]
            assert len(pids) == 3 and all(map(psutil.pid_exists, pids))
            for pid in [worker.pid, *pids]:
                files = open_files(pid)
                assert any(file.startswith("/memfd:decoder-slot") for file in files)
                assert not any(file.startswith("/dev/shm") for file in files) and "/dev/shm" not in Path(f"/proc/{pid}/maps").read_text()
        finally:
            worker.kill()
    assert wait_until(lambda: not any(map(psutil.pid_exists, pids)))


def test_a_program_that_cannot_start_stops_the_run(monkeypatch: pytest.MonkeyPatch, jpeg: Callable[..., bytes]) -> None:
    monkeypatch.setattr(sandbox, "PROGRAM", "no_such_module")
    box = Sandbox(DecoderLimits(processes=1))
    with pytest.raises(Fatal, match="cannot start.*no_such_module"):
        box.check(jpeg()).result(10)
    with pytest.raises(Fatal, match="no_such_module"):
        box.check(jpeg())
    box.close()


def test_a_machine_that_can_start_no_more_processes_stops_the_run(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, jpeg: Callable[..., bytes]
) -> None:
    one = Sandbox(DecoderLimits(processes=1))
    assert one.check(jpeg()).result(10) == "jpg"
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    watcher = one.pid
    os.kill(watcher, signal.SIGKILL)
    assert wait_until(lambda: not psutil.pid_exists(watcher))
    with pytest.raises(Fatal, match="cannot be started again"):
        one.check(jpeg()).result(10)
    assert box.check(jpeg()).result(10) == "jpg"


def test_closed_decoders_say_so(jpeg: Callable[..., bytes]) -> None:
    box = Sandbox(DecoderLimits(processes=1))
    pid = box.pid
    box.close()
    assert wait_until(lambda: not psutil.pid_exists(pid))
    with pytest.raises(Fatal, match="closed"):
        box.check(jpeg())


def test_decoding_in_threads_gives_the_same(jpeg: Callable[..., bytes]) -> None:
    """What systems without memfd get."""
    threads, data = InProcess(DecoderLimits(processes=2)), jpeg(90, 70)
    rules = ImageRules(resize_mode="center_crop", image_size=40)
    assert threads.normalize(data, rules).result(10).image == normalize(data, rules)
    assert (threads.pixels(data).result(10) == decode(data)).all()
    assert threads.check(data[:500]).result(10).code == "corrupt_image"
    threads.close()


def test_one_set_of_decoders_per_process_and_limits() -> None:
    assert shared_decoders(DecoderLimits(processes=1)) is shared_decoders(DecoderLimits(processes=1))
    assert processes_for(10**6) == 1 and 1 <= processes_for(1) <= 8


LARGE = {
    "RGBA PNG": ("PNG", "RGBA", {"compress_level": 1}), "16-bit PNG": ("PNG", "I;16", {"compress_level": 1}), "palette GIF": ("GIF", "P", {}),
    "float TIFF": ("TIFF", "F", {}), "progressive CMYK JPEG": ("JPEG", "CMYK", {"progressive": True, "quality": 50, "subsampling": 0}),
    "lossless WebP": ("WEBP", "RGBA", {"lossless": True, "method": 0}), "AVIF": ("AVIF", "RGBA", {"speed": 10}), "HEIC": ("HEIF", "RGBA", {"quality": 20}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", LARGE)
def test_the_default_memory_is_enough_for_the_default_pixel_limit(kind: str) -> None:
    """Just under 50 million pixels, of the kinds that take the most room, whole and turned."""
    format, mode, options = LARGE[kind]
    colour = {"RGBA": (200, 100, 50, 128), "CMYK": (10, 20, 30, 40), "F": 0.5}.get(mode, 77)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = {"exif": exif} if format in ("PNG", "JPEG", "WEBP", "AVIF") else {}
    out = io.BytesIO()
    Image.new(mode, (7100, 7000), colour).save(out, format, **options, **turned)
    box = Sandbox(DecoderLimits(processes=1, timeout_s=200))
    made = box.normalize(out.getvalue(), ImageRules()).result(400)
    box.close()
    assert isinstance(made, Normalized) and made.image.width * made.image.height == 49_700_000
