"""vLLM's OpenAI server on loopback, before an engine that runs already: a second engine would cost another start."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.models import local_model


@contextmanager
def serving(spec: dict[str, Any]) -> Iterator[str]:
    """URL of the server."""
    import uvicorn
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    chat = local_model(spec).model
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", chat.weights, "--served-model-name", "served"])
    app = build_app(args, ("generate",), chat._engine.vllm_config.model_config)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", lifespan="off"))

    async def run() -> None:
        await init_app_state(chat._engine, app.state, args, ("generate",))
        await server._serve()

    running = asyncio.run_coroutine_threadsafe(run(), chat._loop.loop)
    while not server.started and not running.done():
        time.sleep(0.05)
    if running.done():
        running.result()
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    running.result(30)
