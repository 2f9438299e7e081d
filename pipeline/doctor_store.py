"""What doctor finds of the object store that is to hold a run: the requests that a run makes, on one small object."""

from __future__ import annotations

import secrets
import time

from pipeline.doctor_machine import OK, PROBLEM, WARNING, Check
from pipeline.errors import Fatal, RecipeError
from pipeline.files import TEMPORARY
from pipeline.storage import ObjectPath

PUTS = 5


def object_store(folder: ObjectPath) -> Check:
    """Put, list, read and remove a small object in `folder`, and see whether conditional puts, which keep runs apart, are heeded."""
    probe = folder / f"{TEMPORARY}doctor-{secrets.token_hex(4)}"
    try:
        from pipeline import object_store as requests

        try:
            started = time.perf_counter()
            for number in range(PUTS):
                requests.put(probe.bucket, probe.key, b"%d" % number)
            took = (time.perf_counter() - started) / PUTS
            if probe.read_bytes() != b"%d" % (PUTS - 1) or [path.name for path in folder.glob(probe.name)] != [probe.name]:
                told = f"{folder}: what was put is not what is listed and read"
                return Check("object store", PROBLEM, told, "take another store: a run relies on seeing the last put")
            conditions = _heeds_conditions(probe)
        finally:
            probe.unlink(missing_ok=True)
    except RecipeError as error:
        return Check("object store", PROBLEM, str(error), "name a bucket that is there, and install what is missing")
    except Fatal as error:
        return Check("object store", PROBLEM, str(error), "every node of a cluster needs credentials that may put, get, list and delete here")
    told = f"{folder}: put, listed, read and removed an object; {took * 1000:.0f} ms a put"
    if not conditions:
        return Check("object store", WARNING, f"{told}; it has no conditional puts", "start runs one at a time: of two at the same moment both may begin")
    return Check("object store", OK, f"{told}; conditional puts are heeded")


def _heeds_conditions(probe: ObjectPath) -> bool:
    """Whether making an object a second time fails, as it must."""
    from pipeline import object_store as requests

    try:
        requests.put_if(probe.bucket, probe.key, b"again", None)
    except requests.ConditionFailed:
        return True
    except requests.NoConditions:
        return False
    return False
