"""Examine this device: would a node run here, and what keeps it from doing so?

Owns: the questions about the host (interpreter, configuration, files, ports, clock). What the
inference set-up is like, `models.accelerators` answers.
Never: changes anything, needs a daemon, or imports ONNX Runtime or PyAV (subprocesses do).
Invariant: every finding that is not good says what to do.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edge_node.config import AcceleratorConfig, Config, ConfigError, load
from edge_node.fields import Address
from edge_node.fleet.identity import IdentityError, load_secret
from models.accelerators import PROVIDERS, AcceleratorSpec, doctor_findings, probe

REQUIRED_MODULES = ("aiohttp", "cryptography", "msgpack", "numpy", "uvloop", "zstandard")
SPACE_NEEDED_BYTES = 64 << 20
SPACE_WANTED_BYTES = 512 << 20
CAMERA_TIMEOUT_S = 3.0
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised


class Finding(NamedTuple):
    """Report one answer; severity is "ok", "info", "warning" or "error" (the node won't work)."""

    severity: str
    subject: str
    what: str
    remedy: str = ""


def examine(config_path: Path) -> Iterator[Finding]:
    """Yield findings as they are made; probing an accelerator can take a minute."""
    yield from _python()
    yield from _clock()
    config = None
    try:
        config = load(config_path)
    except ConfigError as error:
        yield Finding("error", "configuration", str(error), "correct it; what follows needs it")
    yield from _inference(config.accelerators if config else (AcceleratorConfig(name="cpu"),))
    if config is not None:
        yield Finding("ok", "configuration", f"{config_path} is valid")
        yield from _secrets(config)
        yield from _state_dir(config.node.state_dir)
        yield from _ports(config)
        for camera in config.cameras:
            yield _camera(camera.name, camera.source)


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("ok", "python", f"{version} ({sys.executable})")
    missing = [name for name in REQUIRED_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        what = f"not installed: {', '.join(missing)}"
        yield Finding("error", "packages", what, "reinstall edge-node with pip")


def _clock() -> Iterator[Finding]:
    # No clock is right that lies before the day on which this program was installed.
    if time.time() < Path(__file__).stat().st_mtime - 86_400:
        what = f"it is {time.strftime('%Y-%m-%d %H:%M')} here, before this program was installed"
        yield Finding("error", "clock", what, "set the clock; timedatectl set-ntp true")
        return
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))  # reads: modes = 0
    except (OSError, AttributeError):
        state = -1
    if state == _TIME_ERROR:
        what = "the kernel says that the clock is not synchronised; entries of a node whose clock "
        what += "is more than 5 s ahead stay hidden on the others"
        yield Finding("warning", "clock", what, "timedatectl set-ntp true")
    elif state < 0:
        yield Finding("info", "clock", "synchronisation not measured: the kernel does not tell")
    else:
        yield Finding("ok", "clock", "synchronised")


def _inference(accelerators: tuple[AcceleratorConfig, ...]) -> Iterator[Finding]:
    for severity, what, remedy in doctor_findings():
        yield Finding(severity, "inference", what, remedy)
    for one in accelerators:
        subject = f"accelerator {one.name}"
        spec = AcceleratorSpec(one.name, one.provider, one.device, one.share, one.queue)
        result = probe(spec)
        if result.ok:
            what = f"{PROVIDERS[one.provider]} agrees with the CPU within {result.max_error:.2%}"
            what += f" of full scale; {result.latency_ms:.1f} ms for the small model at 192 x 320"
            yield Finding("ok", subject, what)
        else:
            remedy = "correct that, or remove this [[accelerator]]; the node leaves it out"
            yield Finding("error", subject, result.reason, remedy)
    for provider in PROVIDERS:
        if provider not in {one.provider for one in accelerators}:
            yield Finding("info", f"accelerator {provider}", "not measured: none is configured")


def _secrets(config: Config) -> Iterator[Finding]:
    try:
        load_secret(config.fleet.secret_file)
    except IdentityError as error:
        what, _, remedy = str(error).partition("; ")
        remedy = remedy or f"chmod 600 {config.fleet.secret_file}"
        yield Finding("error", "fleet secret", what, remedy)
    else:
        yield _private("fleet secret", config.fleet.secret_file)
    token_file = config.api.token_file
    if token_file is not None:
        try:
            empty = not token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            remedy = f"make it readable for user {os.geteuid()}"
            yield Finding("error", "API token", f"{token_file} cannot be read: {error}", remedy)
            return
        if empty:
            remedy = f"openssl rand -hex 32 > {token_file}"
            yield Finding("error", "API token", f"{token_file} is empty", remedy)
        else:
            yield _private("API token", token_file)


def _private(subject: str, path: Path) -> Finding:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        what = f"{path} has mode {mode:04o}: others on this device can use it"
        return Finding("warning", subject, what, f"chmod 600 {path}")
    return Finding("ok", subject, f"{path} is readable, and for its owner alone")


def _state_dir(folder: Path) -> Iterator[Finding]:
    existing = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        what = f"{existing} cannot be written by user {os.geteuid()}"
        remedy = "correct its owner or permissions, or set [node] state_dir"
        yield Finding("error", "state folder", what, remedy)
        return
    free_bytes = shutil.disk_usage(existing).free
    what = f"{folder}: {free_bytes / 1e6:.0f} MB free"
    if free_bytes < SPACE_NEEDED_BYTES:
        yield Finding("error", "state folder", what, "free some space: writes will be refused")
    elif free_bytes < SPACE_WANTED_BYTES:
        yield Finding("warning", "state folder", what, "free some space before it runs out")
    else:
        yield Finding("ok", "state folder", what)


def _ports(config: Config) -> Iterator[Finding]:
    running = _answers(config.api.bind)
    for what, address, kind in (
        ("[fleet] bind (UDP)", config.fleet.bind, socket.SOCK_DGRAM),
        ("[fleet] bind (TCP)", config.fleet.bind, socket.SOCK_STREAM),
        ("[api] bind (TCP)", config.api.bind, socket.SOCK_STREAM),
    ):
        yield _port(f"port {what}", address, kind, running)


def _port(subject: str, address: Address, kind: socket.SocketKind, running: bool) -> Finding:
    try:
        family, _, _, _, target = socket.getaddrinfo(*address, type=kind)[0]
        with socket.socket(family, kind) as tried:
            if kind == socket.SOCK_STREAM:  # as the daemon does: old connections do not matter
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(target)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and running:
            return Finding("ok", subject, f"{address} is used by a running edge-node")
        remedy = {
            errno.EADDRINUSE: "stop what uses it (ss -lntup shows it), or choose another",
            errno.EADDRNOTAVAIL: "use an address of this host, or 0.0.0.0",
            errno.EACCES: "choose a port above 1023",
        }.get(error.errno or 0, "correct the address")
        return Finding("error", subject, f"{address}: {error.strerror or error}", remedy)
    return Finding("ok", subject, f"{address} is free")


def _answers(api: Address) -> bool:
    """Tell whether an edge-node answers on the API's address."""
    import http.client

    host = "127.0.0.1" if api.is_wildcard else api.host
    connection = http.client.HTTPConnection(host, api.port, timeout=2.0)
    try:
        connection.request("GET", "/v2/health/live")
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _camera(name: str, source: str) -> Finding:
    subject = f"camera {name}"
    remedy = "correct [[camera]] source; the node keeps trying"
    if source.startswith("generated:"):
        return Finding("ok", subject, f"{source} is made here")
    if source.startswith(("rtsp:", "rtsps:", "http:", "https:")):
        return _network_camera(subject, source)
    path = Path(source.removeprefix("v4l2:").removeprefix("file:"))
    if not os.path.exists(path):
        return Finding("warning", subject, f"there is no {path}", remedy)
    if not os.access(path, os.R_OK):
        what = f"{path} cannot be read by user {os.geteuid()}"
        group = "add the user to group video" if path.is_char_device() else remedy
        return Finding("warning", subject, what, group)
    return Finding("ok", subject, f"{path} is there")


def _network_camera(subject: str, source: str) -> Finding:
    from urllib.parse import urlsplit

    url = urlsplit(source)
    default = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}[url.scheme]
    host, port = url.hostname or "", url.port or default  # never the URL: it can hold a password
    try:
        socket.create_connection((host, port), CAMERA_TIMEOUT_S).close()
    except OSError as error:
        what = f"{host}:{port} does not answer ({error.strerror or error})"
        return Finding("warning", subject, what, "check the camera and the network")
    return Finding("ok", subject, f"{host}:{port} answers")
