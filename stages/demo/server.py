"""The rendered web's server: answers on loopback what routes.json says, well or badly.

    python -m stages.demo.server FOLDER --port 8642

Kinds of behaviour (one JSON object per path; 'headers' may be added to those that serve a body):

| kind          | keys                         | answer                                                          |
|---------------|------------------------------|-----------------------------------------------------------------|
| file          | file, content_type, status   | the bytes of a file of the folder                               |
| status        | status                       | that status and a short text                                    |
| redirect      | to, status                   | Location: to                                                    |
| redirect_loop | -                            | redirects to itself for ever, with a counter in the query       |
| empty         | content_type                 | 200 and no byte                                                 |
| short         | file, content_type, share    | announces the whole length, sends `share` of it, hangs up       |
| reset         | -                            | drops the connection without an answer                          |
| slow          | seconds, then                | waits, then behaves as `then`                                   |
| sequence      | steps                        | the n-th request gets the n-th step; the last step repeats      |

Control: GET /__requests__ gives requests per path; POST /__behave__ {path: behaviour, ...} replaces behaviours (null
puts back what routes.json says); POST /__reset__ sets all counters to zero.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from aiohttp import web

from stages.demo.serving import Behaviour

CACHE_BYTES: Final = 512 << 20
"""File bytes kept in memory; files beyond are read at each request."""

KINDS: Final = frozenset({"file", "status", "redirect", "redirect_loop", "empty", "short", "reset", "slow", "sequence"})


_PARENT: Final = web.AppKey("parent", int)


class WebHandlers:
    """Routes, counters and cached bytes of one served folder."""

    def __init__(self, folder: Path, cache_bytes: int = CACHE_BYTES) -> None:
        self.folder = folder
        self.planned: dict[str, Behaviour] = json.loads((folder / "routes.json").read_text())
        self.changed: dict[str, Behaviour] = {}
        self.requests: Counter[str] = Counter()
        self._cache: dict[str, bytes] = {}
        self._cache_left = cache_bytes

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/__requests__", self.show_requests)
        app.router.add_post("/__behave__", self.change_behaviour)
        app.router.add_post("/__reset__", self.reset_counters)
        app.router.add_get("/{path:.*}", self.serve)
        return app

    async def show_requests(self, request: web.Request) -> web.Response:
        return web.json_response(self.requests)

    async def reset_counters(self, request: web.Request) -> web.Response:
        self.requests.clear()
        return web.json_response({})

    async def change_behaviour(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        for path, behaviour in wanted.items():
            problem = _problem(behaviour)
            if problem:
                raise web.HTTPBadRequest(text=f"behaviour of {path}: {problem}")
        for path, behaviour in wanted.items():
            self.changed.pop(path, None)
            if behaviour is not None:
                self.changed[path] = behaviour
        return web.json_response({"changed": len(wanted)})

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.requests[request.path] += 1
        behaviour = self.changed.get(request.path) or self.planned.get(request.path)
        if behaviour is None:
            return web.Response(status=404, text="not found")
        return await self._behave(request, behaviour)

    async def _behave(self, request: web.Request, behaviour: Behaviour) -> web.StreamResponse:
        kind = behaviour["kind"]
        if kind == "sequence":
            steps = behaviour["steps"]
            return await self._behave(request, steps[min(self.requests[request.path], len(steps)) - 1])
        if kind == "slow":
            await asyncio.sleep(behaviour["seconds"])
            return await self._behave(request, behaviour["then"])
        if kind == "short":
            return await self._send_short(request, behaviour)
        if kind == "reset":
            _hang_up(request)
            return web.Response()
        return self._answer(request, behaviour)

    def _answer(self, request: web.Request, behaviour: Behaviour) -> web.Response:
        kind, headers = behaviour["kind"], behaviour.get("headers")
        if kind == "file":
            return web.Response(
                body=self._bytes(behaviour["file"]),
                content_type=behaviour["content_type"],
                status=behaviour.get("status", 200),
                headers=headers,
            )
        if kind == "status":
            return web.Response(status=behaviour["status"], text=f"status {behaviour['status']}", headers=headers)
        if kind == "empty":
            return web.Response(body=b"", content_type=behaviour["content_type"], headers=headers)
        if kind == "redirect":
            return web.Response(status=behaviour.get("status", 302), headers={"Location": behaviour["to"]})
        turn = int(request.query.get("turn", "0")) + 1
        return web.Response(status=302, headers={"Location": f"{request.path}?turn={turn}"})

    async def _send_short(self, request: web.Request, behaviour: Behaviour) -> web.StreamResponse:
        data = self._bytes(behaviour["file"])
        response = web.StreamResponse(headers=behaviour.get("headers"))
        response.content_type = behaviour["content_type"]
        response.content_length = len(data)
        await response.prepare(request)
        await response.write(data[: int(len(data) * behaviour["share"])])
        if request.transport is not None:
            request.transport.close()  # flushes what was written, then ends the connection
        return response

    def _bytes(self, name: str) -> bytes:
        data = self._cache.get(name)
        if data is None:
            data = (self.folder / name).read_bytes()
            if len(data) <= self._cache_left:
                self._cache[name] = data
                self._cache_left -= len(data)
        return data


def _hang_up(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


async def _end_with_parent(app: web.Application) -> AsyncIterator[None]:
    """A parent that is killed cannot stop its server, so the server looks for itself."""

    async def watch() -> None:
        while os.getppid() == app[_PARENT]:
            await asyncio.sleep(0.5)
        signal.raise_signal(signal.SIGTERM)

    watching = asyncio.create_task(watch())
    yield
    watching.cancel()


def _problem(behaviour: Behaviour | None) -> str:
    """What is wrong with a behaviour; '' if nothing."""
    if behaviour is None:
        return ""
    if not isinstance(behaviour, dict) or behaviour.get("kind") not in KINDS:
        return f"'kind' must be one of {', '.join(sorted(KINDS))}"
    needed = {
        "file": ("file", "content_type"),
        "status": ("status",),
        "redirect": ("to",),
        "empty": ("content_type",),
        "short": ("file", "content_type", "share"),
        "slow": ("seconds", "then"),
        "sequence": ("steps",),
    }
    missing = [key for key in needed.get(behaviour["kind"], ()) if key not in behaviour]
    if missing:
        return f"kind {behaviour['kind']!r} needs {', '.join(missing)}"
    inner = [behaviour["then"]] if behaviour["kind"] == "slow" else behaviour.get("steps", [])
    return next((text for text in map(_problem, inner) if text), "")


def main(arguments: list[str] | None = None) -> None:
    """Serve a world until the process is ended (SIGINT or SIGTERM)."""
    parser = argparse.ArgumentParser(description="Serve a rendered web on loopback.")
    parser.add_argument("folder", type=Path, help="a folder made by build_world: holds routes.json and images/")
    parser.add_argument("--port", type=int, required=True, help="the port in the world's URLs")
    parser.add_argument("--while-parent", type=int, metavar="PID", help="end when PID is no longer the parent process")
    options = parser.parse_args(arguments)
    if not (options.folder / "routes.json").is_file():
        parser.error(f"{options.folder / 'routes.json'} is missing: build the world first")
    logging.getLogger("aiohttp").setLevel(logging.ERROR)
    app = WebHandlers(options.folder).application()
    if options.while_parent is not None:
        app[_PARENT] = options.while_parent
        app.cleanup_ctx.append(_end_with_parent)
    web.run_app(app, host="127.0.0.1", port=options.port, print=None, access_log=None, shutdown_timeout=0.5)


if __name__ == "__main__":
    main()
