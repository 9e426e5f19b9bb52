"""What tasks did cost on this node: the rows that the affinity model is trained on.

Owns one SQLite file and the thread that writes it; never decides what a row means. Invariant: the
caller never waits for the disk, and no failure of the disk reaches it: rows that cannot be stored
wait, then the oldest are dropped and counted. What is lost costs accuracy, never an answer.
"""

from __future__ import annotations

import math
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from models.affinity.features import Features

FORMAT = 1
MOST_TRACES = 20_000
BATCH = 64
FLUSH_S = 5.0
MOST_PENDING = 4_096
MOST_BYTES = 32 << 20
_PAGE_BYTES = 4096
_UNUSABLE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
_COLUMNS = ("made_s", *Features._fields, "actual_ms", "energy_j")
_TABLE = f"CREATE TABLE IF NOT EXISTS trace(id INTEGER PRIMARY KEY, {', '.join(_COLUMNS)})"
_INSERT = f"INSERT INTO trace({', '.join(_COLUMNS)}) VALUES({', '.join('?' * len(_COLUMNS))})"
_NEWEST = f"SELECT {', '.join(_COLUMNS)} FROM trace ORDER BY id DESC LIMIT ?"


class Trace(NamedTuple):
    """Hold what one task cost; `made_s` is wall time, `energy_j` None where it is not known."""

    made_s: float
    features: Features
    actual_ms: float
    energy_j: float | None


class Traces:
    """Store traces from a thread of its own, the newest `most_rows` of them."""

    def __init__(
        self, path: Path, *, most_rows: int = MOST_TRACES, flush_s: float = FLUSH_S
    ) -> None:
        """Open or create the file; one that is unusable is set aside as `NAME.bad`.

        Never raises for the disk: `trouble` says what is wrong, "" if nothing.
        """
        self.path, self.trouble, self.dropped, self.notices = path, "", 0, list[str]()
        self._most_rows, self._flush_s = most_rows, flush_s
        self._pending: deque[Trace] = deque()
        self._changed = threading.Condition()
        self._asked = self._answered = 0  # flushes
        self._closing = False
        self.stored = self._rows = 0  # rows in the file; those on the way to it as well
        self._database: sqlite3.Connection | None = None
        self._store([])
        self._rows = self.stored
        self._thread = threading.Thread(target=self._serve, name="traces", daemon=True)
        self._thread.start()

    @property
    def rows(self) -> int:
        """Return how many rows are stored or about to be."""
        return min(self._rows, self._most_rows)

    def append(self, trace: Trace) -> None:
        """Have a row stored soon; returns at once. While nothing can be stored the oldest go."""
        with self._changed:
            self._pending.append(trace)
            self._rows += 1
            self._drop_surplus()
            if len(self._pending) == BATCH:
                self._changed.notify_all()

    def flush(self) -> bool:
        """Wait until what was appended has been tried once; say whether it is stored. Blocks."""
        with self._changed:
            self._asked += 1
            mine = self._asked
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._answered >= mine or not self._thread.is_alive())
            return not self.trouble

    def close(self) -> None:
        """Store what is pending and end the thread. Blocks."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _serve(self) -> None:
        closing_now = False
        while not closing_now:
            with self._changed:
                self._changed.wait_for(self._due, timeout=self._flush_s)
                closing_now, asked = self._closing, self._asked
                batch = list(self._pending)
                self._pending.clear()
            stored = self._store(batch) if batch or self.trouble else True
            with self._changed:
                if stored:
                    self._rows = self.stored + len(self._pending)
                else:
                    self._pending.extendleft(reversed(batch))
                    self._drop_surplus()
                self._answered = asked
                self._changed.notify_all()
        self._disconnect()

    def _drop_surplus(self) -> None:
        while len(self._pending) > MOST_PENDING:
            self._pending.popleft()
            self._rows -= 1
            self.dropped += 1

    def _due(self) -> bool:
        # In trouble only the clock and a flush try again, not every row that arrives.
        enough = len(self._pending) >= BATCH and not self.trouble
        return self._closing or self._asked > self._answered or enough

    def _store(self, batch: list[Trace], *, again: bool = True) -> bool:
        try:
            self._write(batch)
        except (sqlite3.Error, OSError) as error:
            self._disconnect()
            if again and _primary(error) in _UNUSABLE and self._set_aside(str(error)):
                return self._store(batch, again=False)
            self.trouble = f"{self.path}: traces cannot be stored ({error}); free space there"
            return False
        self.trouble = ""
        return True

    def _write(self, batch: list[Trace]) -> None:
        database = self._connect()
        with _transaction(database):
            database.executemany(
                _INSERT,
                [(row.made_s, *row.features, row.actual_ms, row.energy_j) for row in batch],
            )
            database.execute(
                "DELETE FROM trace WHERE id <= (SELECT max(id) FROM trace) - ?", (self._most_rows,)
            )
        (self.stored,) = database.execute("SELECT count(*) FROM trace").fetchone()

    def _connect(self) -> sqlite3.Connection:
        if self._database is not None:
            return self._database
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(
            self.path, timeout=1.0, isolation_level=None, check_same_thread=False
        )
        try:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version not in (0, FORMAT):
                raise sqlite3.DatabaseError(f"format {version}, not {FORMAT}")
            database.execute(f"PRAGMA page_size={_PAGE_BYTES}")
            database.execute("PRAGMA journal_mode=TRUNCATE")
            database.execute("PRAGMA synchronous=NORMAL")
            database.execute(f"PRAGMA max_page_count={MOST_BYTES // _PAGE_BYTES}")
            with _transaction(database):
                database.execute(_TABLE)
                database.execute(f"PRAGMA user_version={FORMAT}")
            database.execute(_NEWEST, (1,)).fetchone()  # a table of other columns fails here
        except sqlite3.Error:
            database.close()
            raise
        self._database = database
        return database

    def _disconnect(self) -> None:
        if self._database is not None:
            database, self._database = self._database, None
            with closing(database):
                pass

    def _set_aside(self, reason: str) -> bool:
        aside = self.path.with_name(f"{self.path.name}.bad")
        try:
            self.path.replace(aside)
            self.path.with_name(f"{self.path.name}-journal").unlink(missing_ok=True)
        except OSError:
            return False
        self.notices.append(f"{self.path} was unusable ({reason}); set aside as {aside.name}")
        return True


def read_newest(path: Path, count: int) -> list[Trace]:
    """Return the newest sound traces of a file, oldest first. O(count).

    Raises ValueError naming the file when it cannot be read.
    """
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)) as database:
            found = database.execute(_NEWEST, (count,)).fetchall()
    except sqlite3.Error as error:
        raise ValueError(f"{path}: traces cannot be read ({error})") from None
    return [trace for values in reversed(found) if (trace := _sound(values)) is not None]


def _sound(values: tuple[Any, ...]) -> Trace | None:
    """Return a row as a trace, None if a hand or a fault has spoilt it."""
    try:
        made_s, kind, variant, effort, resolution, batch, queue, heat, *rest = values
        node, accelerator, prior_ms, actual_ms, energy_j = rest
        temperature_c = math.nan if heat is None else float(heat)
        features = Features(
            str(kind), str(variant), float(effort), int(resolution), int(batch), int(queue),
            temperature_c, str(node), str(accelerator), float(prior_ms),
        )  # fmt: skip
        energy = None if energy_j is None else float(energy_j)
        trace = Trace(float(made_s), features, float(actual_ms), energy)
    except (TypeError, ValueError):
        return None
    positive = (features.prior_ms, trace.actual_ms, 1.0 if energy is None else energy)
    sound = all(0 < number < math.inf for number in positive) and math.isfinite(trace.made_s)
    return trace if sound and math.isfinite(features.effort) else None


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _primary(error: Exception) -> int:
    if isinstance(error, sqlite3.DatabaseError) and not hasattr(error, "sqlite_errorcode"):
        return sqlite3.SQLITE_NOTADB  # our own verdict on the format
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF
