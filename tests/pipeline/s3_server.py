"""A real S3 server on loopback (moto's), which keeps a log of its requests."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIDTEST", "AWS_SECRET_ACCESS_KEY": "hush-hush", "AWS_REGION": "us-east-1"}


@dataclass
class Request:
    method: str
    path: str
    query: str
    range: str

    @property
    def name(self) -> str:
        """Key in the bucket."""
        return self.path.removeprefix(f"/{BUCKET}/")


@dataclass
class S3Server:
    """`conditions`: False makes it ignore If-Match and If-None-Match, as old servers do. `fail`: answers 503 where it returns True."""

    url: str
    client: Any
    requests: list[Request] = field(default_factory=list)
    conditions: bool = True
    fail: Callable[[Request], bool] = lambda request: False

    def place(self, folder: str) -> str:
        return f"s3://{BUCKET}/{folder}"

    def files(self, folder: str) -> dict[str, bytes]:
        """Name in the folder -> bytes, as the server has them."""
        found = {}
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{folder}/"):
            for entry in page.get("Contents", []):
                found[entry["Key"].removeprefix(f"{folder}/")] = self.client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
        return found

    def count(self, method: str, ending: str = "", ranged: bool | None = None) -> int:
        """Logged requests of a method whose path ends so; ranged: only those with, or without, a range."""
        fits = (r for r in self.requests if r.method == method and r.path.endswith(ending))
        return sum(ranged is None or bool(r.range) == ranged for r in fits)


def running(monkeypatch: pytest.MonkeyPatch) -> Iterable[S3Server]:
    """Serve for one test, with the environment that clients of this process and its children need."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    backend = DomainDispatcherApplication(create_backend_app)
    server: S3Server

    def app(environ: dict[str, Any], start: Any) -> Any:
        request = Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", ""), environ.get("HTTP_RANGE", ""))
        server.requests.append(request)
        if server.fail(request):
            start("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if not server.conditions:
            environ.pop("HTTP_IF_MATCH", None)
            environ.pop("HTTP_IF_NONE_MATCH", None)
        return backend(environ, start)

    http = make_server("127.0.0.1", 0, app, threaded=True)
    url = f"http://127.0.0.1:{http.server_port}"
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": url}.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
    server = S3Server(url, client)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    backend_reset(client)
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def backend_reset(client: Any) -> None:
    """An empty bucket: moto's state belongs to the process."""
    import moto.backends

    for account in moto.backends.get_backend("s3").values():
        account["aws"].reset()
    client.create_bucket(Bucket=BUCKET)
