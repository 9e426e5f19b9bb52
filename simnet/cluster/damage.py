"""What a crash does to the journal's files of a node that no longer runs.

Owns the reading of SQLite's write-ahead log as far as that takes. Never touches the files of a node
that runs. Invariant: the result is one that a power cut could leave: whole transactions, and behind
them perhaps a part of one. The kinds are those of :mod:`simnet.disk`.

Source: SQLite's file format, section 4 (the write-ahead log).
"""

import random
from pathlib import Path
from struct import unpack_from

from edge_node.fleet.database import EPOCH_NAME, FILE_NAME

_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24
_MOST_LOST = 6
_CHECKPOINT_FRAMES = 64
"""From so many on the log is in the database as well: nothing of it can be lost any more."""


def damage(state: Path, kind: str, rng: random.Random) -> None:
    """Do to a node's folder what a disk of this kind does in a crash."""
    if kind == "lost":
        for name in (FILE_NAME, f"{FILE_NAME}-wal"):
            (state / name).unlink(missing_ok=True)
        if rng.random() < 0.5:
            (state / EPOCH_NAME).unlink(missing_ok=True)
    elif kind in ("torn", "tail"):
        wal = state / f"{FILE_NAME}-wal"
        data = wal.read_bytes() if wal.exists() else b""
        commits = _commits(data)
        if kind == "torn" and commits:
            frame_bytes = (commits[-1] - _HEADER_BYTES) // _frames(data, commits[-1])
            begun = data[_HEADER_BYTES : _HEADER_BYTES + rng.randrange(1, frame_bytes)]
            wal.write_bytes(data[: commits[-1]] + begun)
        elif commits and _frames(data, commits[-1]) < _CHECKPOINT_FRAMES:
            kept = max(1, len(commits) - rng.randint(1, _MOST_LOST))
            wal.write_bytes(data[: commits[kept - 1]])


def _commits(data: bytes) -> list[int]:
    """Return where the transactions of a log end."""
    if len(data) < _HEADER_BYTES:
        return []
    page_bytes, salts = unpack_from(">I", data, 8)[0], data[16:24]
    found = []
    frame_bytes = _FRAME_HEADER_BYTES + page_bytes
    for begin in range(_HEADER_BYTES, len(data) - frame_bytes + 1, frame_bytes):
        if data[begin + 8 : begin + 16] != salts:
            break  # of the log before, whose place this one takes
        if unpack_from(">I", data, begin + 4)[0]:
            found.append(begin + frame_bytes)
    return found


def _frames(data: bytes, end: int) -> int:
    """Return how many frames a log has up to a place."""
    page_bytes: int = unpack_from(">I", data, 8)[0]
    return (end - _HEADER_BYTES) // (_FRAME_HEADER_BYTES + page_bytes)
