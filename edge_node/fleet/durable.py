"""Owns the small files that must survive a power cut: written whole or not at all.

Never holds secrets in a file that others may read. Invariant: after `write_atomically` returned,
a crash leaves the new content; before, the old one; never a part.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class FolderInUse(Exception):
    """Another process holds the state folder."""


def write_atomically(
    path: Path, data: bytes, mode: int = 0o600, *, exclusive: bool = False
) -> None:
    """Replace `path` by `data`, durably. Raises OSError; the old content stays then.

    With `exclusive` the file must be new (FileExistsError), even against other processes.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            path.hardlink_to(scratch)
            scratch.unlink()
        else:
            scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (creations, renames) durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock_folder(folder: Path) -> int:
    """Take the folder for this process; return the lock, which `os.close` (or death) gives back.

    Raises FolderInUse naming the holder's process id, OSError if the folder cannot be written.
    """
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(handle)
        raise FolderInUse(
            f"{folder}: in use by another edge-node (process {holder}); stop it, or give this one "
            f"a folder of its own with [node] state_dir"
        ) from None
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    except OSError:
        pass  # the process id is a courtesy; on a full disk the lock holds without it
    return handle
