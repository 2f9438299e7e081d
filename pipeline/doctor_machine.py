"""What doctor finds of the machine itself: memory, resolver, TLS, proxies, limits, disk."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from pipeline.errors import RecipeError
from pipeline.executor import default_workers

OK, WARNING, PROBLEM = "ok", "warning", "problem"
SLOW_LOOKUP_S = 1.0
LITTLE_DISK = 10 << 30
SLOW_SYNC_S = 0.05
LITTLE_SHM = 1 << 30
PROXY_NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
OPEN_FILES_APART = 256  # of a worker: part files, tars, libraries, sockets of Ray


@dataclass
class Check:
    """One finding. state: 'ok', 'warning' or 'problem'; `do` says what to do, empty where nothing is to be done."""

    name: str
    state: str
    found: str
    do: str = ""


def python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Check("python", WARNING, f"{version}: tested with 3.11 and 3.12", "use Python 3.11")
    return Check("python", OK, f"{version} on {sys.platform}, {default_workers()} of {os.cpu_count()} cores usable")


def memory() -> Check:
    """Memory of the machine, or of the container where that is less."""
    total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    limit = _container_limit()
    usable = min(total, limit or total)
    told = f"{_size(usable)} for this process, {_size(min(free, usable))} free"
    need = (1 << 30) * default_workers()
    if usable < need:
        return Check("memory", WARNING, f"{told}: under 1 GiB per core", f"take fewer workers: --workers {max(1, usable >> 30)}")
    return Check("memory", OK, told)


def _container_limit() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() and int(text) < 1 << 60 else None
    return None


def resolver(online: str | None) -> Iterator[Check]:
    servers = _nameservers()
    named = f"servers {', '.join(servers)}" if servers else "no server in /etc/resolv.conf"
    host = (urlsplit(online).hostname if online else None) or "localhost"
    started = time.perf_counter()
    try:
        addresses = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(host, None)})
    except OSError as error:
        yield Check("resolver", PROBLEM, f"{host} does not resolve: {error}; {named}", "mend /etc/resolv.conf or the network; every fetch would fail with dns")
        return
    took = time.perf_counter() - started
    told = f"{host} is {', '.join(addresses[:3])} ({took * 1000:.0f} ms); {named}"
    if took > SLOW_LOOKUP_S:
        yield Check("resolver", WARNING, told, "a slow resolver slows down every new host: run a caching one on this machine")
    elif not servers and sys.platform == "linux":
        yield Check("resolver", WARNING, told, "names of the web will hardly resolve; name a server in /etc/resolv.conf")
    else:
        yield Check("resolver", OK, told + ("" if online else "; only a name of this machine was looked up, --online URL tries one of the web"))


def _nameservers() -> list[str]:
    try:
        lines = Path("/etc/resolv.conf").read_text().splitlines()
    except OSError:
        return []
    return [line.split()[1] for line in lines if line.startswith("nameserver") and len(line.split()) > 1]


def tls() -> Check:
    """The CA certificates that Python's default context takes, which is the one that fetches use."""
    paths = ssl.get_default_verify_paths()
    place = os.environ.get(paths.openssl_cafile_env) or os.environ.get(paths.openssl_capath_env) or paths.cafile or paths.capath
    try:
        number = len(ssl.create_default_context().get_ca_certs())
    except (OSError, ssl.SSLError) as error:
        return Check("tls", PROBLEM, f"the CA certificates of {place} cannot be read: {error}", f"mend or unset {paths.openssl_cafile_env}")
    in_folder = paths.capath is not None and any(Path(paths.capath).glob("*.0"))
    if not number and not in_folder:
        return Check(
            "tls", PROBLEM, f"no CA certificates found ({place or 'no place'})",
            f"install the system's package ca-certificates, or name a bundle in {paths.openssl_cafile_env}; every https URL would fail with tls",
        )  # fmt: skip
    if not 2020 < time.gmtime().tm_year < 2100:
        return Check("tls", PROBLEM, f"the clock says {time.strftime('%Y-%m-%d')}", "set the clock: certificates are judged by it")
    return Check("tls", OK, f"{ssl.OPENSSL_VERSION}, {number or 'hashed'} CA certificates ({place})")


def proxies() -> Check:
    found = {name: value for name in PROXY_NAMES for value in [os.environ.get(name) or os.environ.get(name.upper())] if value}
    if not found:
        return Check("proxy", OK, "no proxy variables set")
    told = ", ".join(f"{name}={_without_password(value)}" for name, value in found.items())
    for name, value in found.items():
        if name != "no_proxy" and not re.match(r"^(https?|socks[45]h?)://[^/]+", value):
            return Check("proxy", PROBLEM, told, f"write {name} as http://HOST:PORT")
    return Check("proxy", WARNING, told, "make sure that downloads are to go through it (the parameters of `pairmill stages download` say how), or unset it")


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", url)


def online(url: str) -> Check:
    started = time.perf_counter()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"User-Agent": "pairmill-doctor"}), timeout=15) as answer:
            size = len(answer.read(1 << 16))
            return Check("online", OK, f"{url}: status {answer.status}, {size:,} bytes read in {time.perf_counter() - started:.2f} s")
    except urllib.error.HTTPError as error:
        return Check("online", WARNING, f"{url}: status {error.code} {error.reason}", "the network works; the server refuses this page or this client")
    except ValueError as error:
        raise RecipeError(f"--online {url}: {error}; write it as https://HOST/PATH") from error
    except OSError as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, ssl.SSLError):
            do = "the certificate is not trusted: check the clock, the CA certificates, and proxies that open TLS"
            return Check("online", PROBLEM, f"{url}: {cause}", do)
        return Check("online", PROBLEM, f"{url}: {type(cause).__name__}: {cause}", "check the network, the firewall and the proxy")


def open_files(concurrency: int) -> Check:
    """The limit of a process against what a worker with so many requests under way needs."""
    try:
        import resource
    except ImportError:  # no such limit on this system
        return Check("open files", OK, "no limit known on this system")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = concurrency + OPEN_FILES_APART
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    told = f"limit {limit} per process; a worker needs about {need:,} (download.concurrency and {OPEN_FILES_APART} more)"
    if soft != resource.RLIM_INFINITY and soft < need:
        do = f"ulimit -n {need}" if hard == resource.RLIM_INFINITY or hard >= need else f"have the hard limit of {hard:,} raised"
        return Check("open files", PROBLEM, told, f"{do}, or lower download.concurrency")
    return Check("open files", OK, told)


def disk(out: Path) -> Iterator[Check]:
    """Free space and the speed of small commits, on the disk of `out` (its nearest folder that exists)."""
    folder = out.resolve()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    told = f"{_size(free)} free in {folder}"
    if free < LITTLE_DISK:
        yield Check("disk", WARNING, told, "a web image takes about 0.1 to 0.5 MB as fetched, twice during write_shards; make space, or take another --out")
    else:
        yield Check("disk", OK, told)
    probe = folder / f".tmp-doctor-{os.getpid()}"
    try:
        started = time.perf_counter()
        for _ in range(5):
            with open(probe, "wb") as file:
                file.write(bytes(100_000))
                file.flush()
                os.fsync(file.fileno())
        took = (time.perf_counter() - started) / 5
    except OSError as error:
        yield Check("commits", PROBLEM, f"{folder} cannot be written: {error}", "take another --out, or mend its rights")
        return
    finally:
        probe.unlink(missing_ok=True)
    state = WARNING if took > SLOW_SYNC_S else OK
    do = "every part file is made durable so: take larger input.rows_per_part, or a faster disk" if state == WARNING else ""
    yield Check("commits", state, f"{took * 1000:.1f} ms to write 100 kB durably", do)


def shared_memory() -> Iterator[Check]:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return
    usage = shutil.disk_usage(folder)
    told = f"/dev/shm has {_size(usage.free)} free of {_size(usage.total)}"
    if usage.free < LITTLE_SHM:
        yield Check("shared memory", WARNING, told, "Ray keeps objects there; in a container start it with --shm-size=2g")
    else:
        yield Check("shared memory", OK, told)


def _size(number: int) -> str:
    return f"{number / (1 << 30):,.1f} GiB"
