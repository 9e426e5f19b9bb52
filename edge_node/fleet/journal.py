"""Owns what a node must not forget: its own batches, clock, epoch and incarnation.

SQLite on a thread of its own; never blocks the event loop, never stores other nodes' batches.
Invariant: when `append` returned, the batch survives a power cut, so it may leave the node. Every
start begins an epoch of its own, so whatever becomes of the folder no run numbers its batches as
another did.
"""

from __future__ import annotations

import asyncio
import os
import queue
import secrets
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edge_node.fleet.database import (
    EPOCH_SALT_BITS,
    Database,
    JournalError,
    JournalFull,
    Saved,
    adopt,
    journal_error,
    next_epoch,
    store_epoch,
)
from edge_node.fleet.durable import FolderInUse, lock_folder

if TYPE_CHECKING:
    from crdt.log import Batch

__all__ = ["Journal", "JournalError", "JournalFull", "Start"]

GROUP_LIMIT = 256


@dataclass(frozen=True)
class Start:
    """Say where this run of the node begins.

    `epoch` and `incarnation` are higher than in any run before; `batches` are the node's own live
    batches (signed bytes) of earlier runs in order; `notices` are sentences for the operator (a
    corrupt database was set aside, the disk is full).
    """

    epoch: int
    incarnation: int
    high_water: int
    batches: tuple[bytes, ...]
    notices: tuple[str, ...] = ()


@dataclass
class _Write:
    batch: Batch | None
    high_water: int = 0
    incarnation: int = 0
    done: Future[None] = field(default_factory=Future)


class Journal:
    """Keep the node's own log durable. Made by `open`; one per state folder."""

    def __init__(self, folder: Path, lock: int, database: Database, saved: Saved) -> None:
        self._folder, self._lock, self._database, self._saved = folder, lock, database, saved
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._closed = False
        self._noted = (0, 0)  # what the epoch file holds
        self.counters: dict[str, float] = {
            "commits": 0,
            "batches": 0,
            "failures": 0,
            "held": len(saved.batches),
            "last_commit_ms": 0.0,
            "full": 0,
        }
        notices = [*saved.notices, *self._begin()]
        batches = tuple(raw for _, raw in sorted(saved.batches.items()))
        self.start = Start(
            saved.epoch, saved.incarnation, saved.high_water, batches, tuple(notices)
        )
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        state_dir: Path,
        *,
        origin: bytes | None = None,
        max_bytes: int = 16 << 20,
        wall_s: float | None = None,
    ) -> Journal:
        """Open or create the journal in `state_dir` and lock that folder. Blocks (disk).

        `origin` (node id): a journal that belongs to another node's key is set aside. `max_bytes`
        bounds the database; live batches need well under 1 MiB. `wall_s` is the wall clock: it
        gives the new epoch, unless the last one was later.

        Raises JournalError (folder in use, not writable, newer format), JournalFull if a new
        journal finds no space. A full disk does not stop a node that has a journal: the notice
        says so, and `append` raises until there is space.
        """
        folder = Path(state_dir)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = lock_folder(folder)
        except FolderInUse as error:
            raise JournalError(str(error)) from error
        except OSError as error:
            raise journal_error(folder, error) from error
        database = Database(folder, max_bytes)
        try:
            saved = adopt(database, origin)
            wall_s = time.time() if wall_s is None else wall_s
            saved.epoch = next_epoch(saved.epoch, wall_s, secrets.randbits(EPOCH_SALT_BITS))
            return cls(folder, lock, database, saved)
        except BaseException:
            database.close()
            os.close(lock)
            raise

    async def append(self, batch: Batch, high_water: int) -> None:
        """Make `batch` durable, in one transaction with dropping what it leaves superfluous.

        That is all outside `batch.live`, once everything in there is durable. Batches must come
        in order of (epoch, sequence); what waits is committed together.

        Raises JournalFull or JournalError; nothing is stored then, and the same call may be
        repeated. Repeating the last successful call is harmless.
        """
        await self._submit(_Write(batch, high_water))

    async def record_incarnation(self, incarnation: int) -> None:
        """Make an incarnation (raised by a refutation) durable. Raises like `append`."""
        await self._submit(_Write(None, incarnation=incarnation))

    async def close(self) -> None:
        """Commit what waits, close the database and give the folder back. May be repeated."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    async def _submit(self, write: _Write) -> None:
        if self._closed:
            raise JournalError(f"{self._folder}: the journal is closed")
        self._queue.put(write)
        await asyncio.wrap_future(write.done)

    def _begin(self) -> list[str]:
        """Make the raised numbers durable; return why that failed, if it did."""
        try:
            self._write(self._saved)
        except JournalFull as error:
            if self._saved.fresh:
                raise
            self.counters["full"] = 1
            return [str(error)]
        return []

    # Below: the journal's thread.

    def _run(self) -> None:
        while (group := self._next_group()) is not None:
            ready = [w for w in group if w.done.set_running_or_notify_cancel()]
            if ready:
                self._commit(ready)
        self._database.close()
        os.close(self._lock)

    def _next_group(self) -> list[_Write] | None:
        first = self._queue.get()
        if first is None:
            return None
        group = [first]
        while len(group) < GROUP_LIMIT and not self._queue.empty():
            write = self._queue.get()
            if write is None:
                self._queue.put(None)
                break
            group.append(write)
        return group

    def _commit(self, group: list[_Write]) -> None:
        began_s = time.monotonic()
        outcome: Exception | None = None
        refused: dict[int, JournalError] = {}
        try:
            refused = self._store(group)
        except Exception as error:  # noqa: BLE001 - handed to those who wait; the thread lives on
            outcome = error
            self.counters["failures"] += 1
        else:
            self.counters["commits"] += 1
            self.counters["batches"] += sum(w.batch is not None for w in group) - len(refused)
            self.counters["held"] = len(self._saved.batches)
            self.counters["last_commit_ms"] = (time.monotonic() - began_s) * 1000
        self.counters["full"] = int(isinstance(outcome, JournalFull))
        for index, write in enumerate(group):
            failure = outcome or refused.get(index)
            if failure is None:
                write.done.set_result(None)
            else:
                write.done.set_exception(failure)

    def _store(self, group: list[_Write]) -> dict[int, JournalError]:
        """Commit the group in one transaction; return the writes that were out of order."""
        refused: dict[int, JournalError] = {}
        after = self._saved.copy()
        for index, write in enumerate(group):
            after.incarnation = max(after.incarnation, write.incarnation)
            if write.batch is None:
                continue
            if reason := after.objection(write.batch):
                refused[index] = JournalError(f"{self._folder}: {reason}")
                continue
            after.add(write.batch, write.high_water)
        self._write(after)
        return refused

    def _write(self, after: Saved) -> None:
        if self._noted != (after.epoch, after.incarnation):
            store_epoch(self._folder, after)
            self._noted = after.epoch, after.incarnation
        self._database.write(self._saved, after)
        self._saved = after
