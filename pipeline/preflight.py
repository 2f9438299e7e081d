"""What a run needs of its surroundings, asked before anything is read or written: a cluster that answers, a GPU, room on the disk.

What is missing is the user's to change (another option, another folder), so that each raises RecipeError: exit code 2.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from typing import Any

from pipeline.errors import DiskFull, RecipeError
from pipeline.lock import RunLock
from pipeline.storage import Place

ANSWER_S = 5.0
TORCH_S = 60.0
_HOST_PORT = re.compile(r"^(?:ray://|https?://)?(?P<host>\[[^\]]+\]|[^:/]+):(?P<port>\d+)/?$")
_DEVICE = re.compile(r"^(auto|cpu|mps|cuda(:\d+)?)$")
_COUNT = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"


def check_address(address: str | None) -> None:
    """Raises RecipeError where nothing answers at a cluster's HOST:PORT. Ray itself asks for minutes before it gives up."""
    if address is None or address in ("auto", "local"):
        return
    found = _HOST_PORT.match(address)
    if found is None:
        raise RecipeError(f"--address {address}: write HOST:PORT, ray://HOST:PORT, or auto for the cluster of this machine")
    try:
        socket.create_connection((found["host"].strip("[]"), int(found["port"])), ANSWER_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise RecipeError(unreachable(address, error)) from error


def unreachable(address: str, why: object) -> str:
    """What is told where no Ray cluster answers at an address."""
    told = " ".join(str(why).split())
    return (
        f"--address {address}: no Ray cluster answers ({told[:160]}); start one (`ray start --head`), name one that runs "
        "(`ray status` on its machine shows it), or leave --address out to work on this machine alone"
    )


def check_devices(recipe: Any) -> None:
    """Raises RecipeError where a model or a job names a GPU that this machine does not have. torch is asked in a process of its own."""
    wanted = {f"models.{name}.device": str(spec.get("device", "auto")) for name, spec in recipe.models.items()}
    wanted |= {f"{job.instance}.device": str(getattr(job.params, "device", "auto")) for job in recipe.jobs}
    for place, device in wanted.items():
        if not _DEVICE.match(device):
            raise RecipeError(f"{place}: must be auto, cpu, cuda or cuda:N, found {device!r}")
    on_gpu = {place: device for place, device in wanted.items() if device.startswith("cuda")}
    number = _gpus() if on_gpu else 0
    for place, device in on_gpu.items():
        if number is not None and int(device.partition(":")[2] or 0) >= number:
            has = f"{number} GPU{'' if number == 1 else 's'}" if number else "no GPU"
            raise RecipeError(
                f"{place}: {device} is asked for and torch finds {has} on this machine; give --set {place}=auto (a GPU where there is one, "
                "else the processor), or see `pairmill doctor` for what is missing"
            )


def _gpus() -> int | None:
    """GPUs that torch can use, 0 where torch is missing; None where it says nothing in time, as on a machine that is very busy."""
    try:
        done = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, timeout=TORCH_S, check=False)
    except subprocess.TimeoutExpired:
        return None
    told = done.stdout.split()
    return int(told[-1]) if done.returncode == 0 and told and told[-1].isdigit() else 0


def take_lock(lock: RunLock) -> None:
    """Take the run directory. A disk that is full before the run has begun is a wrong --out (RecipeError), and so is a folder that cannot be
    written; a disk that fills on the way is Fatal."""
    try:
        lock.acquire()
    except DiskFull as error:
        raise RecipeError(f"--out: {error}; or name a folder on another disk") from error
    except OSError as error:
        raise unwritable(lock.root, error) from error


def unwritable(root: Place, error: OSError) -> RecipeError:
    """What is told of an --out in which no run can be kept."""
    at = f" ({error.filename})" if error.filename and str(error.filename) != str(root) else ""
    return RecipeError(f"--out {root}: cannot be used: {error.strerror or error}{at}; name a folder that you may write to")
