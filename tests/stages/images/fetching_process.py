"""A process that fetches URLs as one worker of a run: python fetching_process.py '{"run": ..., "urls": [...], "per_host": ..., ...}'.

Prints 'ready' once everything is imported, waits for a line on its standard input, fetches, and prints the outcomes as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys

from stages.images.fetch import Fetched, FetchOptions, fetch_all
from stages.images.host_slots import slots_of_run


def main() -> None:
    asked = json.loads(sys.argv[1])
    slots = slots_of_run(asked["run"], asked["per_host"], asked.get("rate"), 1, asked.get("processes", 2))
    outcomes: list[str] = []

    async def handle(result: Fetched) -> None:
        outcomes.append("ok" if result.failure is None else result.failure.code)

    print("ready", flush=True)
    sys.stdin.readline()
    options = FetchOptions(allow_private=True, timeout_s=20, retries=asked.get("retries", 0), backoff_s=0.05)
    asyncio.run(fetch_all(asked["urls"], options, handle, slots))
    print(json.dumps(outcomes), flush=True)


main()
