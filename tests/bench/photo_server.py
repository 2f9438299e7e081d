"""Photos of about 160 KB under any number of URLs, served by nginx on loopback. Used by the download benchmarks."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import simplejpeg

LONG_SIDE = 640
WANTED_BYTES = 160_000

CONFIG = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log error;
{user}
events {{ worker_connections 4096; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000;
  open_file_cache max=1000;
  types {{ image/jpeg jpg; }}
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    root {folder}/photos;
    rewrite ^/[0-9]+/([0-9]+\\.jpg)$ /$1 break;
  }}
}}
"""


def prepare_photos(source: Path, folder: Path) -> int:
    """Write the photos found under `source`, longer side 640 pixels, each at the JPEG quality that brings it nearest to 160 KB. Returns their number."""
    folder.mkdir(parents=True)
    found = sorted(source.rglob("*.jpg"))
    for number, path in enumerate(found):
        pixels = simplejpeg.decode_jpeg(path.read_bytes())
        scale = LONG_SIDE / max(pixels.shape[:2])
        if scale != 1:
            size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        made = (simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420") for quality in range(80, 101, 2))
        (folder / f"{number}.jpg").write_bytes(min(made, key=lambda data: abs(len(data) - WANTED_BYTES)))
    return len(found)


def photo_urls(port: int, photos: int, count: int) -> list[str]:
    """`count` different URLs, the photos in turn."""
    return [f"http://127.0.0.1:{port}/{number}/{number % photos}.jpg" for number in range(count)]


@contextmanager
def serve(folder: Path) -> Iterator[int]:
    """nginx with one worker process over `folder`/photos; gives its port. Raises RuntimeError where there is no nginx."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise RuntimeError("nginx is not on the PATH; install it (apt-get install nginx-light)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, port=port, user="user root;" if os.getuid() == 0 else ""))
    server = subprocess.Popen([program, "-c", str(config), "-p", str(folder)], stdin=subprocess.DEVNULL)
    try:
        _wait_until_open(port, server)
        yield port
    finally:
        server.terminate()
        server.wait(10)


def _wait_until_open(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        if server.poll() is not None:
            raise RuntimeError(f"nginx ended with {server.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise RuntimeError("nginx did not open its port")
