"""Owns the journal's SQLite file: its format, its opening checks, what its failures mean.

Never starts threads and never decides what is live. Invariant: one transaction takes the file from
one `Saved` to the next; a file that fails a check is renamed, never repaired or deleted unseen.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from crdt.log import sequences
from edge_node.fleet.durable import sync_folder, write_atomically

if TYPE_CHECKING:
    from crdt.log import Batch

FILE_NAME = "journal.db"
EPOCH_NAME = "epoch"
FORMAT = 1
PAGE_BYTES = 4096
KEPT_CORRUPT = 3
EPOCH_SALT_BITS = 16
_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SCHEMA = (
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE batch(epoch INTEGER, sequence INTEGER, raw BLOB NOT NULL, digest BLOB NOT NULL,"
    " PRIMARY KEY(epoch, sequence))",
    f"PRAGMA user_version={FORMAT}",
)


class JournalError(Exception):
    """The journal could not be opened or written; the text names the folder and what to do."""


class JournalFull(JournalError):
    """The journal found no space; the same call succeeds once there is some."""


class _Unusable(Exception):
    """The database file cannot be used; the text says why."""


@dataclass
class Saved:
    """Hold what the database holds. `batches` maps (epoch, sequence) to signed bytes."""

    origin: bytes
    epoch: int = 0
    incarnation: int = 0
    high_water: int = 0
    batches: dict[tuple[int, int], bytes] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    fresh: bool = False

    def copy(self) -> Saved:
        """Return a copy whose batches can be changed alone. O(batches)."""
        return replace(self, batches=dict(self.batches))

    def objection(self, batch: Batch) -> str | None:
        """Say why `batch` may not come next, None if it may."""
        last = max(self.batches, default=(0, 0))  # the newest batch is never dropped
        if batch.version > last and batch.epoch >= self.epoch:
            return None
        if batch.version == last and self.batches[last] == batch.raw:
            return None
        return f"batch {batch.version} comes after {last}, in epoch {self.epoch}"

    def add(self, batch: Batch, high_water: int) -> None:
        """Add `batch`; once all that it names live is here, drop the rest. O(batches)."""
        self.epoch = max(self.epoch, batch.epoch)  # later than ours if peers knew of later ones
        self.batches[batch.version] = batch.raw
        live = [(batch.epoch, number) for number in sequences(batch.live)]
        if all(version in self.batches for version in live):
            self.batches = {version: self.batches[version] for version in live}
        self.high_water = max(self.high_water, high_water)


class Database:
    """Read and write the file. Used by one thread at a time."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self._max_bytes = folder, max_bytes
        self._connection: sqlite3.Connection | None = None

    def load(self) -> Saved | None:
        """Check and read everything, None if there is nothing yet.

        Raises _Unusable (fails a check), JournalError (anything else).
        """
        try:
            db = self._connect()
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > FORMAT:
                raise JournalError(
                    f"{self.folder / FILE_NAME}: format {version} is newer than this program's "
                    f"{FORMAT}; upgrade edge-node, or give it another [node] state_dir"
                )
            (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
            if verdict != "ok":
                raise _Unusable(f"fails its integrity check ({verdict})")
            return _read(db) if version else None
        except sqlite3.Error as error:
            if _primary(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise _Unusable(f"is not a sound database ({error})") from error
            raise journal_error(self.folder, error) from error
        except OSError as error:
            raise journal_error(self.folder, error) from error

    def write(self, before: Saved, after: Saved) -> None:
        """Bring the file from `before` to `after` in one durable transaction. Blocks (fsync).

        Raises JournalFull or JournalError; the file holds `before` then.
        """
        try:
            db = self._connect()
            try:
                db.execute("BEGIN IMMEDIATE")
                self._change(db, before, after)
                db.execute("COMMIT")
            except sqlite3.Error:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OSError) as error:
            if not (isinstance(error, sqlite3.Error) and _primary(error) == sqlite3.SQLITE_FULL):
                self.close()  # after an IO error only a new connection knows what is on the disk
            raise journal_error(self.folder, error) from error

    def close(self) -> None:
        """Close the connection; the next use opens a new one."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            try:
                connection.close()
            except sqlite3.Error:
                pass  # nothing is lost: every acknowledged transaction is in the file or its WAL

    def _connect(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        path = self.folder / FILE_NAME
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(path, timeout=0.5, isolation_level=None, check_same_thread=False)
        try:
            # The folder is ours alone, so no shared-memory file, which a full disk can't extend.
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute(f"PRAGMA page_size={PAGE_BYTES}")
            db.execute("PRAGMA journal_mode=WAL")
            # FULL: in WAL mode NORMAL may lose the last commits in a power cut.
            db.execute("PRAGMA synchronous=FULL")
            db.execute(f"PRAGMA max_page_count={max(4, self._max_bytes // PAGE_BYTES)}")
            db.execute("PRAGMA wal_autocheckpoint=64")
        except sqlite3.Error:
            db.close()
            raise
        self._connection = db
        return db

    def _change(self, db: sqlite3.Connection, before: Saved, after: Saved) -> None:
        if after.fresh and db.execute("PRAGMA user_version").fetchone() == (0,):
            for statement in _SCHEMA:
                db.execute(statement)
        # Deleting first lets the new batch have the pages of the old ones when space is short.
        dropped = [version for version in before.batches if version not in after.batches]
        db.executemany("DELETE FROM batch WHERE epoch=? AND sequence=?", dropped)
        added = [
            (*version, raw, _digest(raw))
            for version, raw in after.batches.items()
            if version not in before.batches
        ]
        db.executemany("INSERT INTO batch VALUES(?, ?, ?, ?)", added)
        values = {
            "origin": after.origin.hex(),
            "epoch": str(after.epoch),
            "incarnation": str(after.incarnation),
            "high_water": str(after.high_water),
        }
        db.executemany("INSERT OR REPLACE INTO meta VALUES(?, ?)", list(values.items()))


def next_epoch(last: int, wall_s: float, salt: int) -> int:
    """Return an epoch later than `last`, and no earlier than the wall clock's second.

    Its low bits are the random `salt`: two lives of one disk image differ even if neither has a
    clock, or batches of both under one number would pass for a forgery.
    """
    return max((last >> EPOCH_SALT_BITS) + 1, int(wall_s)) << EPOCH_SALT_BITS | salt


def adopt(database: Database, origin: bytes | None) -> Saved:
    """Open the folder's database, or set an unusable one aside.

    The incarnation is raised in what is returned, not yet in the file. Raises JournalError.
    """
    folder = database.folder
    epoch, incarnation = _read_epoch(folder / EPOCH_NAME)
    saved, notices = None, []
    try:
        saved = database.load()
        if saved is not None and origin and saved.origin and saved.origin != origin:
            raise _Unusable(f"belongs to the key of node {saved.origin.hex()}")
    except _Unusable as reason:
        database.close()
        saved = None
        aside = _set_aside(folder)
        notices = [
            f"{folder / FILE_NAME} {reason}; it was set aside as {aside.name}: peers give back "
            f"what this node had written, if one is reached before it writes again"
        ]
    if saved is None:
        if epoch and not notices:
            notices = [f"{folder / FILE_NAME} is lost: peers give back what they have of it"]
        saved = Saved(origin or b"", notices=notices, fresh=True)
    saved.epoch = max(saved.epoch, epoch)
    saved.incarnation = max(saved.incarnation, incarnation) + 1
    saved.origin = saved.origin or (origin or b"")
    return saved


def store_epoch(folder: Path, saved: Saved) -> None:
    """Write epoch and incarnation beside the database: either may be lost, not both.

    Raises JournalFull or JournalError.
    """
    try:
        write_atomically(folder / EPOCH_NAME, f"{saved.epoch} {saved.incarnation}\n".encode())
    except OSError as error:
        raise journal_error(folder, error) from error


def journal_error(folder: Path, error: sqlite3.Error | OSError) -> JournalError:
    """Say in the operator's words what a failure of the disk or of SQLite means."""
    if isinstance(error, OSError):
        full = error.errno in _FULL_ERRNOS
        what = error.strerror or str(error)
    else:
        # SQLite reports a quota or size limit as a failed write, like a failing disk.
        full = _primary(error) == sqlite3.SQLITE_FULL or (
            getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_WRITE
        )
        what = f"{error} ({getattr(error, 'sqlite_errorname', 'SQLite')})"
    if full:
        return JournalFull(
            f"{folder}: the journal cannot grow: {what}; free space on that file system or move "
            f"[node] state_dir; nothing is lost, and new state leaves this node once it is stored"
        )
    if isinstance(error, sqlite3.Error) and _primary(error) == sqlite3.SQLITE_BUSY:
        return JournalError(f"{folder / FILE_NAME}: another program holds the database; close it")
    return JournalError(
        f"{folder}: the journal cannot be used: {what}; check that the folder is writable for "
        f"this user and that its disk is healthy, or move [node] state_dir"
    )


def _read(db: sqlite3.Connection) -> Saved:
    try:
        meta = dict(db.execute("SELECT key, value FROM meta"))
        saved = Saved(
            bytes.fromhex(meta["origin"]),
            int(meta["epoch"]),
            int(meta["incarnation"]),
            int(meta["high_water"]),
        )
        rows = db.execute("SELECT epoch, sequence, raw, digest FROM batch").fetchall()
    except (KeyError, ValueError, TypeError) as error:
        raise _Unusable(f"holds a damaged record ({error!r})") from error
    except sqlite3.OperationalError as error:
        if _primary(error) == sqlite3.SQLITE_ERROR:  # a table is missing
            raise _Unusable(f"is not a journal ({error})") from error
        raise
    for epoch, sequence, raw, digest in rows:
        if not isinstance(raw, bytes) or _digest(raw) != digest:
            raise _Unusable(f"holds a damaged batch ({epoch}, {sequence})")
        saved.batches[epoch, sequence] = raw
    return saved


def _read_epoch(path: Path) -> tuple[int, int]:
    try:
        epoch, incarnation = path.read_bytes()[:64].split()
        return int(epoch), int(incarnation)
    except (FileNotFoundError, ValueError):
        return 0, 0  # lost or damaged: the database or the wall clock takes its place
    except OSError as error:
        raise journal_error(path.parent, error) from error


def _set_aside(folder: Path) -> Path:
    """Rename the database to `.corrupt-<n>`, n counting up; keep the newest few."""
    prefix = f"{FILE_NAME}.corrupt-"
    taken = [path.name.removeprefix(prefix) for path in folder.glob(f"{prefix}*")]
    number = 1 + max((int(suffix) for suffix in taken if suffix.isdigit()), default=0)
    aside = folder / f"{prefix}{number}"
    try:
        (folder / FILE_NAME).replace(aside)
        wal = folder / f"{FILE_NAME}-wal"
        if wal.exists():
            wal.replace(folder / f"{aside.name}-wal")
        for suffix in ("", "-wal"):
            oldest = folder / f"{prefix}{number - KEPT_CORRUPT}{suffix}"
            oldest.unlink(missing_ok=True)
        sync_folder(folder)
    except OSError as error:
        raise journal_error(folder, error) from error
    return aside


def _digest(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()[:8]


def _primary(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF
